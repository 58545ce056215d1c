# tidegate: make demo and make test are all that a newcomer needs.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null)
DATE    ?= $(shell git log -1 --format=%cI 2>/dev/null)
LDFLAGS  = -s -w -buildid= -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)
# What runs once, at a person's pace or in handshakes is not inlined: that is
# 0.8 MB of the binary. Polling and encoding are. Locks and calls to the kernel
# are not either: nothing could be measured of it.
COLD     = net net/url net/http/... encoding/asn1 encoding/json encoding/pem go.bug.st/... encoding/base64 encoding/hex encoding/csv bufio container/list sync internal/sync math/rand internal/fmtsort internal/saferio internal/nettrace \
	internal/poll internal/godebug internal/bisect internal/syscall/... io/... golang.org/x/sys/... math/big sort \
	unicode/... golang.org/x/net/... regexp/... fmt reflect text/... log/... flag mime/... os/... time path/... \
	compress/... vendor/... github.com/... strings net/textproto net/netip go.etcd.io/... bytes syscall context errors \
	internal/reflectlite crypto/... hash/... embed runtime/debug runtime/pprof internal/profile internal/singleflight \
	tidegate/internal/rule tidegate/uplink/sparkplug tidegate/cmd/... tidegate/config tidegate/internal/document \
	tidegate/internal/status tidegate/internal/account tidegate/internal/sim tidegate/internal/capture \
	tidegate/internal/command tidegate/internal/agent tidegate/driver/mbus tidegate/driver/obis tidegate/uplink \
	tidegate/buffer tidegate/internal/clock tidegate/internal/tcp
# HTTP/2 is left out: neither the agent's own socket nor a receiver needs it.
BUILD    = CGO_ENABLED=0 $(GO) build -tags nethttpomithttp2 -trimpath -buildvcs=false $(COLD:%=-gcflags=%=-l) -ldflags "$(LDFLAGS)"
OUT     ?= tidegate

.PHONY: build demo test unit vet peers telegraf cross proof-kill proof-load proof-beside proof-wear proof-bus proof-many proof-drain proof-hostile proof-power proof-faults proof-net proof-storm proof-cluster proof-recipes mutants clean

build: ## the static binary, ./tidegate
	$(BUILD) -o $(OUT) ./cmd/tidegate

demo: build ## simulated devices, a TLS broker, an outage, an account; ends by itself
	./tidegate demo --outage 20s

test: peers vet unit ## everything that is tested

vet:
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }
	$(GO) vet ./...

# One package at a time: many tests wait for devices, and a machine that is busy
# with another package is late. The race detector needs a C compiler; without one the tests run without it,
# and say so.
unit:
	@if command -v cc >/dev/null 2>&1 && [ "$$($(GO) env CGO_ENABLED)" = 1 ]; then \
		$(GO) test -race -p 1 -timeout 20m ./...; \
	else \
		echo "NOT RUN: the race detector (it needs a C compiler)"; \
		test -z "$$CI" && $(GO) test -p 1 -timeout 20m ./...; \
	fi

# Programs that none of us wrote, for the tests that talk to real peers.
PEERS = mosquitto mosquitto_sub mbpoll socat cc pkg-config openssl strace node tinyproxy microsocks psql
PACKAGES = mosquitto mosquitto-clients libmodbus-dev gcc libc6-dev python3-pymodbus python3-serial python3-serial-asyncio python3-cbor2 mbpoll socat pkg-config openssl strace tinyproxy-bin microsocks postgresql python3-paho-mqtt python3-psycopg2 \
	$(shell command -v npm >/dev/null 2>&1 && command -v node >/dev/null 2>&1 || echo nodejs npm)

# Where the packages of testdata/peer/npm go.
NPM = $${XDG_CACHE_HOME:-$$HOME/.cache}/tidegate-peers

peers:
	@missing=; for p in $(PEERS); do command -v $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	echo '#include <modbus.h>' | cc -E -I/usr/include/modbus - >/dev/null 2>&1 || missing="$$missing libmodbus"; \
	/usr/bin/python3 -c 'import pymodbus.client, pymodbus.server, serial, cbor2, paho.mqtt.client, psycopg2' >/dev/null 2>&1 || missing="$$missing pymodbus-cbor2-paho-or-psycopg2"; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
		echo "installing for the tests:$$missing"; \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(PACKAGES); } >/tmp/tidegate-peers.log 2>&1 \
			|| { echo "NOT INSTALLED, see below"; tail -5 /tmp/tidegate-peers.log; }; \
		missing=; for p in $(PEERS); do command -v $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
		/usr/bin/python3 -c 'import pymodbus.client, pymodbus.server, serial, cbor2, paho.mqtt.client, psycopg2' >/dev/null 2>&1 || missing="$$missing pymodbus-cbor2-paho-or-psycopg2"; \
	fi; \
	if [ -n "$$missing" ]; then \
		echo "NOT HERE, so the tests with these peers do not run:$$missing"; \
		echo "  as root: apt-get install $(PACKAGES)"; \
		test -z "$$CI"; \
	fi

	@cmp -s testdata/peer/npm/package-lock.json $(NPM)/package-lock.json && test -d $(NPM)/node_modules/mqtt || { \
		echo "installing for the tests: npm sparkplug-payload, mqtt"; \
		mkdir -p $(NPM) && cp testdata/peer/npm/package*.json $(NPM)/ && \
		npm ci --prefix $(NPM) --ignore-scripts --no-audit --no-fund >$(NPM)/log 2>&1 || { \
			rm -f $(NPM)/package-lock.json; \
			echo "NOT HERE, so the test with a Sparkplug host does not run: npm sparkplug-payload (see $(NPM)/log)"; test -z "$$CI"; }; }

# Slower proofs; docs/performance.md says what they gave.
KILLS ?= 100
proof-kill: ## kill -9 at random moments while the broker comes and goes
	TIDEGATE_KILLS=$(KILLS) $(GO) test -run '^TestKill$$' -count=1 -timeout 60m -v ./cmd/tidegate

proof-load: ## CPU, memory and disk of the whole program at its reference load
	$(GO) test -run '^$$' -bench BenchmarkAgent -benchtime 1x -count 5 -timeout 30m ./cmd/tidegate

WEAR ?= 10m
proof-wear: ## bytes written and stored with a broker and without one; as root also what the file system adds
	TIDEGATE_WEAR=$(WEAR) $(GO) test -run '^TestWear$$' -count=1 -timeout 90m -parallel 7 -v ./cmd/tidegate

proof-bus: ## 32 RTU units on a paced line: share of its physical limit, with 0, 1 and 8 of them dead
	$(GO) test -run '^$$' -bench BenchmarkBus -benchtime 1x -count 1 -timeout 30m ./driver

# Telegraf with the few plugins that the proofs need.
TELEGRAF = $${XDG_CACHE_HOME:-$$HOME/.cache}/tidegate-telegraf
TELEGRAF_PLUGINS = inputs.modbus inputs.mqtt_consumer outputs.mqtt outputs.file parsers.influx parsers.json_v2 serializers.influx serializers.json
telegraf:
	@test -x $(TELEGRAF)/telegraf || GOBIN=$(TELEGRAF) $(GO) install -tags "custom $(TELEGRAF_PLUGINS)" github.com/influxdata/telegraf/cmd/telegraf@v1.37.2

proof-beside: telegraf ## proof-load with Telegraf at the same work at the same time: the ratios of CPU and memory
	TIDEGATE_TELEGRAF=$(TELEGRAF)/telegraf $(GO) test -run '^$$' -bench BenchmarkAgent -benchtime 1x -count 5 -timeout 30m ./cmd/tidegate

proof-many: ## 1,000 devices on 100 Modbus TCP endpoints, every second
	$(GO) test -run '^$$' -bench BenchmarkMany -benchtime 1x -count 1 -timeout 30m ./cmd/tidegate

proof-drain: ## live data while a backlog drains, on fast and on thin links; drain beside the MQTT library alone
	$(GO) test -run '^$$' -bench 'BenchmarkLive|BenchmarkBesidePaho' -benchtime 1x -count 1 -timeout 60m ./uplink

proof-hostile: ## as root: a broker that says what no broker may, to the whole program in a cgroup of 64 MB
	$(GO) test -run '^$$' -bench BenchmarkHostile -benchtime 1x -count 1 -timeout 30m ./cmd/tidegate

# The rigs of bench/, a module of its own: root, and for the faults strace.
CUTS ?= 300
SEED ?=
proof-power: ## power cuts under the buffer: an honest disk, then one that lies about flushes
	cd bench && $(GO) run ./powercut -cuts $(CUTS) $(if $(SEED),-seed $(SEED))
	cd bench && $(GO) run ./powercut -mode lying -cuts $(CUTS) $(if $(SEED),-seed $(SEED))

DAMAGES ?= 9000
proof-faults: ## every call of the buffer to the disk killed or failing, one after the other; then files spoiled in nine ways
	cd bench && $(GO) run ./faults
	BUFFER_DAMAGES=$(DAMAGES) $(GO) test -run '^(TestDamage|TestNumbersDamaged)$$' -count=1 -timeout 60m -v ./buffer

DEAD ?= 10m
proof-net: ## as root: loss, black hole, resets, half-open, 9.6 kbit/s in network namespaces
	cd bench && $(GO) run ./network -dead $(DEAD)

OUTAGE ?= 5s 90s
proof-storm: ## a thousand gateways come back after outages of their broker
	cd bench && for o in $(OUTAGE); do $(GO) run ./storm -outage $$o || exit 1; done

proof-cluster: ## three NATS JetStream servers as brokers; two of them are killed, one after the other
	cd bench && $(GO) run ./cluster

NODE_RED = $${XDG_CACHE_HOME:-$$HOME/.cache}/tidegate-node-red
proof-recipes: peers telegraf ## the recipes for Node-RED and Telegraf in these themselves; npm installs the one (120 MB), go install the other
	@test -d $(NODE_RED)/node_modules/node-red || npm install --prefix $(NODE_RED) --ignore-scripts --no-audit --no-fund node-red@4.1.15
	TIDEGATE_NODE_RED=$(NODE_RED) TIDEGATE_TELEGRAF=$(TELEGRAF)/telegraf $(GO) test -run '^TestRecipes(NodeRED|Telegraf)$$' -count=1 -v ./cmd/tidegate

mutants: ## deliberate breakages that the tests must catch
	cd bench && $(GO) run ./mutants

TARGETS = amd64 arm64 arm/7 arm/6 arm/5 386 riscv64 mipsle
cross: ## all architectures into dist/, with their sizes; arm64 must stay under 11 MB
	@mkdir -p dist; for t in $(TARGETS); do \
		arch=$${t%/*}; arm=; case $$t in arm/*) arm=$${t#*/};; esac; \
		out=dist/tidegate-linux-$$arch$$( [ -n "$$arm" ] && echo v$$arm ); \
		GOOS=linux GOARCH=$$arch GOARM=$$arm GOMIPS=softfloat $(BUILD) -o $$out ./cmd/tidegate || exit 1; \
		printf '%-36s %9d bytes\n' $$out $$(stat -c %s $$out); \
	done; test $$(stat -c %s dist/tidegate-linux-arm64) -le 11000000

clean:
	rm -rf tidegate dist
