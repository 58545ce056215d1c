"""A Modbus server over TLS on pymodbus 3.0 for the tests of package driver.

    pymodbus_tls.py PORT CA CERT KEY

It asks the client for a certificate of CA, as MODBUS/TCP Security wants it,
and serves as unit 17 what pymodbus_rtu.py serves. Inside TLS stand the frames
of Modbus TCP; pymodbus' own TLS framer would leave their header away. It runs
until it is killed.
"""
import asyncio
import ssl
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server.async_io import StartAsyncTlsServer
from pymodbus.transaction import ModbusSocketFramer

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
    port, ca, cert, key = sys.argv[1:5]
    ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ctx.minimum_version = ssl.TLSVersion.TLSv1_2
    ctx.load_cert_chain(cert, key)
    ctx.load_verify_locations(ca)
    ctx.verify_mode = ssl.CERT_REQUIRED
    print("ready", flush=True)
    await StartAsyncTlsServer(
        context=ModbusServerContext(slaves={17: unit}, single=False),
        framer=ModbusSocketFramer, address=("127.0.0.1", int(port)), sslctx=ctx, reqclicert=True)


asyncio.run(main())
