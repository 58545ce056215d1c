# A Modbus master on pymodbus that tries every table and function on the unit
# of TestPeers. Arguments: rtu PORT | ascii PORT | tcp PORT | rtu+tcp PORT.
import sys
from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.transaction import ModbusRtuFramer, ModbusAsciiFramer

kind, port = sys.argv[1:]
if kind == "rtu":
    c = ModbusSerialClient(port, baudrate=115200, parity="N", timeout=3)
elif kind == "ascii":
    c = ModbusSerialClient(port, framer=ModbusAsciiFramer, baudrate=115200, timeout=3)
elif kind == "tcp":
    c = ModbusTcpClient("127.0.0.1", port=int(port), timeout=3)
else:
    c = ModbusTcpClient("127.0.0.1", port=int(port), framer=ModbusRtuFramer, timeout=3)
assert c.connect(), "no connection"
U = 17
checks = 0


def same(what, got, want):
    global checks
    checks += 1
    if got != want:
        sys.exit("%s: got %r, want %r" % (what, got, want))


def bits(what, r, want):
    same(what + " error", r.isError(), False)
    same(what, r.bits[: len(want)], want)


def regs(what, r, want):
    same(what + " error", r.isError(), False)
    same(what, r.registers, want)


def refused(what, r, code):
    same(what + " refused", r.isError(), True)
    same(what + " code", getattr(r, "exception_code", r), code)


coil = lambda i: i % 3 == 0
for first, n in ((0, 1), (0, 8), (3, 13), (0, 40)):
    bits("FC1", c.read_coils(first, n, slave=U), [coil(i) for i in range(first, first + n)])
    bits("FC2", c.read_discrete_inputs(100 + first, n, slave=U), [not coil(i) for i in range(first, first + n)])
for first, n in ((0, 1), (5, 7), (0, 125)):
    regs("FC3", c.read_holding_registers(first, n, slave=U), [(7 + 517 * i) % 65536 for i in range(first, first + n)])
    regs("FC4", c.read_input_registers(1000 + first, n, slave=U), [(9 + 331 * i) % 65536 for i in range(first, first + n)])
refused("FC1 address", c.read_coils(39, 2, slave=U), 2)
refused("FC3 address", c.read_holding_registers(124, 2, slave=U), 2)
refused("FC4 address", c.read_input_registers(999, 1, slave=U), 2)
refused("FC6 address", c.write_register(125, 1, slave=U), 2)
refused("FC3 device failure", c.read_holding_registers(3000, 1, slave=U), 4)
same("FC5", c.write_coil(1, True, slave=U).isError(), False)
same("FC6", c.write_register(10, 4711, slave=U).isError(), False)
same("FC15", c.write_coils(8, [True, False, True, True, False, False, True, True, True, False, True], slave=U).isError(), False)
same("FC16", c.write_registers(20, [1, 2, 65535], slave=U).isError(), False)
bits("FC5 back", c.read_coils(0, 3, slave=U), [True, True, False])
bits("FC15 back", c.read_coils(8, 11, slave=U), [True, False, True, True, False, False, True, True, True, False, True])
regs("FC6 and FC16 back", c.read_holding_registers(10, 1, slave=U), [4711])
regs("FC16 back", c.read_holding_registers(20, 3, slave=U), [1, 2, 65535])
# These two hand their arguments straight to the request, whose word is unit.
same("FC22", c.mask_write_register(20, 0x00F2, 0x0025, unit=U).isError(), False)
regs("FC22 back", c.read_holding_registers(20, 1, slave=U), [0x0005])
regs("FC23", c.readwrite_registers(read_address=30, read_count=4, write_address=31, write_registers=[5, 6], unit=U),
     [(7 + 517 * 30) % 65536, 5, 6, (7 + 517 * 33) % 65536])
c.close()
print("ok", checks)
