/* A boiler as a libmodbus TCP server: boiler_tcp PORT.
 *
 * Input register 0: supply temperature, s16 x 0.1 Cel. Coil 3: the pump.
 * Holding registers 20..21: energy, u32 low word first x 0.01 kWh. */
#include <errno.h>
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    modbus_t *ctx = modbus_new_tcp("127.0.0.1", argc > 1 ? atoi(argv[1]) : 1502);
    modbus_mapping_t *map = modbus_mapping_new(100, 100, 100, 100);
    int listener;

    if (ctx == NULL || map == NULL || (listener = modbus_tcp_listen(ctx, 4)) == -1) {
        fprintf(stderr, "boiler_tcp: %s\n", modbus_strerror(errno));
        return 1;
    }
    map->tab_input_registers[0] = 635;                  /* 63.5 Cel */
    map->tab_bits[3] = 1;
    map->tab_registers[20] = 123456 & 0xffff;           /* 1234.56 kWh */
    map->tab_registers[21] = 123456 >> 16;
    for (;;) {
        uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
        int n;

        modbus_tcp_accept(ctx, &listener);
        while ((n = modbus_receive(ctx, query)) != -1)
            if (n > 0)
                modbus_reply(ctx, query, n, map);
        modbus_close(ctx);
    }
}
