"""A Modbus RTU server on pymodbus 3.0 for the tests of package driver.

    pymodbus_rtu.py PATH rtu|ascii

It serves as unit 17. Register or bit a of a table holds truth(table, a);
addresses from 1000 on do not exist. It runs until it is killed.
"""
import asyncio
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server.async_io import StartAsyncSerialServer
from pymodbus.transaction import ModbusAsciiFramer, ModbusRtuFramer

SIZE = 1000


def truth(table, a):
    return (table * 7919 + a * 257 + 3) & 0xFFFF


def block(table):
    values = [truth(table, a) for a in range(SIZE)]
    if table <= 2:
        values = [v % 3 == 0 for v in values]
    return ModbusSequentialDataBlock(0, values)


async def main():
    unit = ModbusSlaveContext(co=block(1), di=block(2), hr=block(3), ir=block(4), zero_mode=True)
    framer = ModbusAsciiFramer if sys.argv[2] == "ascii" else ModbusRtuFramer
    print("ready", flush=True)
    await StartAsyncSerialServer(
        context=ModbusServerContext(slaves={17: unit}, single=False),
        framer=framer, port=sys.argv[1], baudrate=115200, timeout=0.02)


asyncio.run(main())
