// A host application of Sparkplug B on npm sparkplug-payload and npm mqtt:
// nothing in it is ours but this glue. It says that it is online, writes what
// it decodes as lines of JSON, and takes commands as lines on its input:
//   rebirth NODE | write NODE DEVICE METRIC VALUE [TIME [retain]] | offline
// node host.js URL IDENTITY GROUP HOST
"use strict";
const fs = require("fs"), path = require("path"), readline = require("readline");
const mqtt = require("mqtt");
const spb = require("sparkplug-payload").get("spBv1.0");

const [url, identity, group, host] = process.argv.slice(2);
const file = (name) => fs.readFileSync(path.join(identity, name));
const state = (online) => JSON.stringify({ online, timestamp: started + (online ? 0 : 1) });
const started = Date.now();

const client = mqtt.connect(url, {
  ca: file("ca.crt"), cert: file("client.crt"), key: file("client.key"),
  clientId: host, clean: true, protocolVersion: 4, reconnectPeriod: 0,
  will: { topic: "spBv1.0/STATE/" + host, payload: state(false), qos: 1, retain: true },
});
const print = (o) => process.stdout.write(JSON.stringify(o, (k, v) => (typeof v === "bigint" ? String(v) : v)) + "\n");
const plain = (v) => (v !== null && typeof v === "object" && typeof v.toNumber === "function" ? v.toNumber() : v);

client.on("error", (e) => { print({ error: String(e) }); process.exit(1); });
client.on("connect", () => {
  client.subscribe(["STATE/" + host, group + "/#"].map((t) => "spBv1.0/" + t), { qos: 1 }, () => {
    client.publish("spBv1.0/STATE/" + host, state(true), { qos: 1, retain: true }, () => print({ ready: true }));
  });
});

const births = {}; // node or node/device -> alias -> metric
client.on("message", (topic, body, packet) => {
  const [, g, kind, node, device] = topic.split("/");
  if (g === "STATE" || kind === "NCMD" || kind === "DCMD") return;
  let p;
  try { p = spb.decodePayload(body); } catch (e) { print({ kind, bad: String(e) }); return; }
  const who = device ? node + "/" + device : node;
  if (kind === "NBIRTH" || kind === "DBIRTH") births[who] = {};
  const metrics = (p.metrics || []).map((m) => {
    const alias = plain(m.alias);
    if (kind === "NBIRTH" || kind === "DBIRTH") { if (alias) births[who][alias] = m; }
    const born = alias && births[who] && births[who][alias];
    return { name: m.name || (born && born.name) || "", alias, type: m.type || "", value: plain(m.value), isNull: !!m.isNull,
      historical: !!m.isHistorical, timestamp: plain(m.timestamp),
      quality: m.properties && m.properties.Quality ? plain(m.properties.Quality.value) : null,
      reason: m.properties && m.properties.Reason ? m.properties.Reason.value : null,
      unit: m.properties && m.properties.engUnit ? m.properties.engUnit.value : null };
  });
  print({ kind, node, device: device || "", seq: p.seq === undefined ? null : plain(p.seq), timestamp: plain(p.timestamp), qos: packet.qos, metrics });
});

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const [what, node, device, metric, value, time, retain] = line.split(" ");
  const now = time ? Number(time) : Date.now();
  const ncmd = (topic, m) => client.publish("spBv1.0/" + group + "/" + topic, Buffer.from(spb.encodePayload({ timestamp: now, metrics: [m] })), { qos: 0, retain: !!retain });
  if (what === "rebirth") ncmd("NCMD/" + node, { name: "Node Control/Rebirth", timestamp: now, type: "Boolean", value: true });
  if (what === "write") ncmd("DCMD/" + node + "/" + device, { name: metric, timestamp: now, type: "Double", value: Number(value) });
  if (what === "offline") client.publish("spBv1.0/STATE/" + host, state(false), { qos: 1, retain: true }, () => print({ offline: true }));
}).on("close", () => client.end(true, () => process.exit(0)));
