"""An Eastron SDM630 as a pymodbus RTU slave: meter_rtu.py PORT [UNIT].

Input registers 0..379 hold float32, high word first; the voltages and the
import counter have values of their own, all else is 0.
"""
import struct
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server import StartSerialServer
from pymodbus.transaction import ModbusRtuFramer

port = sys.argv[1]
unit = int(sys.argv[2]) if len(sys.argv) > 2 else 1
registers = [0] * 400
for address, value in {0x00: 231.68, 0x02: 230.5, 0x04: 229.75, 0x0C: 1250.0, 0x46: 49.98, 0x48: 18234.52}.items():
    registers[address:address + 2] = struct.unpack(">HH", struct.pack(">f", value))
block = ModbusSequentialDataBlock(1, registers)
StartSerialServer(
    context=ModbusServerContext(slaves={unit: ModbusSlaveContext(ir=block, hr=block)}, single=False),
    framer=ModbusRtuFramer, port=port, baudrate=9600, bytesize=8, parity="N", stopbits=1, timeout=0.005)
