"""A SunSpec device on pymodbus 3.0 for the tests of package driver.

    pymodbus_sunspec.py PORT BASE PAD int|float

Modbus TCP, unit 1: the marker at BASE, model 1 with 65 registers and PAD more,
then model 103 (int) or 113 (float), then the end. Other registers do not
exist. It runs until it is killed.
"""
import asyncio
import struct
import sys

from pymodbus.datastore import ModbusServerContext, ModbusSlaveContext, ModbusSparseDataBlock
from pymodbus.server.async_io import StartAsyncTcpServer

NA16, NAS = 0xFFFF, 0x8000


def words(f):
    return list(struct.unpack(">HH", struct.pack(">f", f)))


def text(s, n):
    b = s.encode().ljust(2 * n, b"\0")
    return list(struct.unpack(">%dH" % n, b))


def models(base, pad, kind):
    regs = text("SunS", 2) + [1, 65 + pad]
    regs += text("Maker", 16) + text("Model X", 16) + text("", 8) + text("1.0", 8) + text("SN42", 16) + [1] + [0x8000] * pad
    if kind == "int":
        body = [237, 78, 80, 79, 0xFFFF, 4014, 4030, 4023, 2315, 2314, 2337, 0xFFFF, 5520, 0, 4996, 0xFFFE, 5528, 0,
                0x10000 - 315, 0, 0x10000 - 998, 0xFFFF, 0x01FC, 0x6B62, 0, NA16, NAS, 7616, 0xFFFF, 5604, 0,
                NAS, 520, NAS, NAS, 0xFFFF, 4, 0] + [0] * 12
        regs += [103, len(body)] + body
    else:
        nan = words(float("nan"))
        body = words(23.7) + words(7.8) + words(8.0) + words(7.9) + words(401.4) + words(403.0) + words(402.3)
        body += words(231.5) + words(231.4) + words(233.7) + words(5520.0) + words(49.96) + words(5528.0) + words(-315.0)
        body += words(-99.8) + words(33319778.0) + nan + words(761.6) + words(5604.0) + nan + words(52.0) + nan + nan
        body += [4, 0] + [0] * 12
        regs += [113, len(body)] + body
    regs += [0xFFFF, 0]
    return {base + i: v for i, v in enumerate(regs)}


async def main():
    port, base, pad, kind = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    block = ModbusSparseDataBlock(models(base, pad, kind))
    unit = ModbusSlaveContext(hr=block, zero_mode=True)
    print("ready", flush=True)
    await StartAsyncTcpServer(context=ModbusServerContext(slaves={1: unit}, single=False), address=("127.0.0.1", port))


asyncio.run(main())
