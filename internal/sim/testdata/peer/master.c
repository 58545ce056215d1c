/* A Modbus master on libmodbus that tries every table and function on the
 * unit of TestPeers. Arguments: rtu PORT | tcp PORT. */
#include <errno.h>
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks;

static void want(int ok, const char *what)
{
	checks++;
	if (!ok) {
		fprintf(stderr, "%s: %s\n", what, modbus_strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	modbus_t *m;
	uint8_t bits[64];
	uint16_t regs[130];
	int i;

	if (argc != 3)
		return 2;
	m = strcmp(argv[1], "rtu") ? modbus_new_tcp("127.0.0.1", atoi(argv[2]))
				   : modbus_new_rtu(argv[2], 115200, 'N', 8, 1);
	want(m != NULL, "new");
	want(modbus_set_slave(m, 17) == 0, "slave");
	want(modbus_set_response_timeout(m, 3, 0) == 0, "timeout");
	want(modbus_connect(m) == 0, "connect");

	want(modbus_read_bits(m, 0, 40, bits) == 40, "FC1");
	for (i = 0; i < 40; i++)
		want(bits[i] == (i % 3 == 0), "FC1 value");
	want(modbus_read_input_bits(m, 100, 40, bits) == 40, "FC2");
	for (i = 0; i < 40; i++)
		want(bits[i] == (i % 3 != 0), "FC2 value");
	want(modbus_read_registers(m, 0, 125, regs) == 125, "FC3");
	for (i = 0; i < 125; i++)
		want(regs[i] == (uint16_t)(7 + 517 * i), "FC3 value");
	want(modbus_read_input_registers(m, 1000, 125, regs) == 125, "FC4");
	for (i = 0; i < 125; i++)
		want(regs[i] == (uint16_t)(9 + 331 * i), "FC4 value");

	want(modbus_read_registers(m, 124, 2, regs) == -1 && errno == EMBXILADD, "FC3 exception 2");
	want(modbus_read_input_bits(m, 99, 1, bits) == -1 && errno == EMBXILADD, "FC2 exception 2");
	want(modbus_read_registers(m, 3000, 1, regs) == -1 && errno == EMBXSFAIL, "FC3 exception 4");
	want(modbus_report_slave_id(m, 64, bits) == -1 && errno == EMBXILFUN, "FC17 exception 1");

	want(modbus_write_bit(m, 1, 1) == 1, "FC5");
	want(modbus_write_register(m, 10, 4711) == 1, "FC6");
	memset(bits, 1, 11);
	bits[1] = bits[4] = 0;
	want(modbus_write_bits(m, 8, 11, bits) == 11, "FC15");
	regs[0] = 1, regs[1] = 2, regs[2] = 65535;
	want(modbus_write_registers(m, 20, 3, regs) == 3, "FC16");
	want(modbus_read_bits(m, 0, 20, bits) == 20, "read back");
	want(bits[1] == 1 && bits[8] == 1 && bits[9] == 0 && bits[12] == 0 && bits[18] == 1 && bits[19] == 0, "FC5 and FC15 back");
	want(modbus_mask_write_register(m, 20, 0x00F2, 0x0025) >= 0, "FC22");
	want(modbus_read_registers(m, 20, 3, regs) == 3, "read back");
	want(regs[0] == 0x0005 && regs[1] == 2 && regs[2] == 65535, "FC16 and FC22 back");
	regs[0] = 5, regs[1] = 6;
	want(modbus_write_and_read_registers(m, 31, 2, regs, 30, 4, regs + 2) == 4, "FC23");
	want(regs[2] == (uint16_t)(7 + 517 * 30) && regs[3] == 5 && regs[4] == 6, "FC23 value");

	modbus_close(m);
	modbus_free(m);
	printf("ok %d\n", checks);
	return 0;
}
