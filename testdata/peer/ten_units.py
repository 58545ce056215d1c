"""Ten Modbus RTU units on one line, made of pymodbus 3.0.

    ten_units.py PATH

Units 1 to 10 at 115200 8N1, each with holding registers 0 to 15 that hold
100 x unit + address. Unit 4 is off. Unit 6 answers every third request 0.75 s
late. Unit 8 has no register 7 and refuses whatever touches it. Registers can
be written. It runs until it is killed.
"""
import asyncio
import sys
import time

from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext, ModbusSparseDataBlock
from pymodbus.server.async_io import StartAsyncSerialServer
from pymodbus.transaction import ModbusRtuFramer

OFF, LATE, HOLE = 4, 6, 8


class Registers(ModbusSparseDataBlock):
    def __init__(self, unit):
        self.unit, self.asked = unit, 0
        super().__init__({a: 100 * unit + a for a in range(16) if (unit, a) != (HOLE, 7)})

    def validate(self, address, count=1):
        return all(a in self.values for a in range(address, address + count))

    def getValues(self, address, count=1):
        self.asked += 1
        if self.unit == LATE and self.asked % 3 == 0:
            time.sleep(0.75)
        return super().getValues(address, count)


async def main():
    units = {u: ModbusSlaveContext(hr=Registers(u), zero_mode=True) for u in range(1, 11) if u != OFF}
    print("ready", flush=True)
    await StartAsyncSerialServer(
        context=ModbusServerContext(slaves=units, single=False), framer=ModbusRtuFramer,
        port=sys.argv[1], baudrate=115200, timeout=0.02, ignore_missing_slaves=True)


asyncio.run(main())
