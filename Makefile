# make run    a virtual environment, the program in it, and the demo gateway
# make test   the same with what the tests need, and the tests
# make bench  what a call costs, beside what it cost without sessions, in two minutes
# make docs   the documents as a site, in build/site

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SDK := 2.3.0
MERMAID := 11.17.2

export TRUNKLINE_SDK1_PYTHON ?= $(CURDIR)/.venv-sdk1/bin/python
export TRUNKLINE_NODE_MODULES ?= $(CURDIR)/.node/node_modules
export TRUNKLINE_EVERYTHING_SERVER ?= $(CURDIR)/.peers/everything-server
export TRUNKLINE_CHROMIUM ?= /usr/bin/chromium
export TRUNKLINE_CF09_PYTHON ?= $(CURDIR)/.venv-cf09/bin/python
export TRUNKLINE_CF10_PYTHON ?= $(CURDIR)/.venv-cf10/bin/python

.PHONY: run test test-full check coverage bench bench-micro bench-full bench-peers docs clean peers browser servers contextforge proxies test-contextforge

run: $(VENV)/.installed
	$(BIN)/trunkline serve

test: $(VENV)/.dev peers
	$(BIN)/python -m pytest -m "not slow and not contextforge" $(ARGS)

test-full: $(VENV)/.dev peers contextforge
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev .types/trunkline
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p trunkline.mux -p trunkline.transports -p trunkline.compat -p trunkline.gateway

# The modules that decide without I/O are covered to the last branch, by their own tests.
coverage: $(VENV)/.dev
	$(BIN)/python tests/pure_coverage.py

# What matters most, in two minutes. Results are left in .bench; `python -m bench` lists what there is.
bench: $(VENV)/.dev $(VENV)/.bench
	$(BIN)/python -m bench.load --quick
	$(BIN)/python -m bench budget .bench || true

bench-micro: $(VENV)/.dev $(VENV)/.bench
	$(BIN)/python -m bench.micro

# All of it, for an hour, on a machine that does nothing else; README and docs show its results.
bench-full: $(VENV)/.dev $(VENV)/.bench
	$(BIN)/python -m bench.load --output bench/results
	$(BIN)/python -m bench.micro --output bench/results
	$(BIN)/python -m bench.memory --output bench/results
	$(BIN)/python -m bench.slow_reader --output bench/results
	$(BIN)/python -m bench.servers --output bench/results
	$(BIN)/python -m bench.fairness --output bench/results
	$(BIN)/python -m bench.leave --output bench/results
	$(BIN)/python -m bench.directories
	$(BIN)/python -m bench.redis_size
	$(BIN)/python -m bench.redis_operations
	$(BIN)/python -m bench.soak --output bench/results
	$(BIN)/python -m bench.figures

# Other proxies beside it.
bench-peers: $(VENV)/.dev $(VENV)/.bench proxies
	$(BIN)/python -m bench.peers --output bench/results

docs: $(VENV)/.docs .mermaid/mermaid.min.js
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .bench .mermaid .venv-sdk1 .venv-cf09 .venv-cf10 .node .peers .proxies .types build dist *.egg-info

# A fresh Debian has a python3 that cannot make virtual environments; its package for that is small.
define make_venv
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "trunkline needs Python 3.11 or newer as python3; another one is named by PYTHON=python3.12" >&2; exit 1; }
	@echo "a virtual environment in $(1)"
	@$(PYTHON) -m venv $(1) 2>/dev/null \
	  || { rm -rf $(1); $(PYTHON) -m virtualenv -q $(1) 2>/dev/null; } \
	  || { rm -rf $(1); test "$$(id -u)" = 0 && apt-get update -q && apt-get install -qy python3-venv && $(PYTHON) -m venv $(1); } \
	  || { echo "cannot make a virtual environment: install python3-venv (apt-get install python3-venv)" >&2; exit 1; }
endef

$(VENV)/bin/python:
	$(call make_venv,$(VENV))

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' 'mcp==$(SDK)'
	@touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]'
	@touch $@

# What draws the diagrams of the site. Without npm, the site shows their text.
.mermaid/mermaid.min.js:
	mkdir -p .mermaid
	@if command -v npm >/dev/null; then cd .mermaid && npm pack --silent mermaid@$(MERMAID) >/dev/null \
	   && tar xzf mermaid-$(MERMAID).tgz --strip-components 2 package/dist/mermaid.min.js && rm mermaid-$(MERMAID).tgz; \
	 elif [ -n "$$CI" ]; then echo "npm is missing" >&2; exit 1; \
	 else echo "npm is missing: the site will show diagrams as text"; fi

.types/trunkline:
	mkdir -p .types && ln -sfn .. $@

# What the tests meet: both lines of the Python SDK, the TypeScript SDK, the conformance suite and its server, a browser,
# redis and PostgreSQL.
peers: .venv-sdk1/.installed .node/.installed .peers/.installed browser servers

# Debian's package; elsewhere TRUNKLINE_CHROMIUM names one.
browser:
	@if [ -x "$(TRUNKLINE_CHROMIUM)" ]; then :; \
	 elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; \
	 elif [ -n "$$CI" ]; then echo "$(TRUNKLINE_CHROMIUM) is missing" >&2; exit 1; \
	 else echo "$(TRUNKLINE_CHROMIUM) is missing: the tests in a browser will be skipped"; fi

# Debian's packages. The tests start servers of their own: those that the packages would start are kept from it. `ip`, of
# iproute2, makes networks that are cut; only root can use it.
servers:
	@if command -v redis-server >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
	    && command -v ip >/dev/null; then :; \
	 elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	     redis-server postgresql iproute2; \
	 elif [ -n "$$CI" ]; then echo "redis-server, PostgreSQL or iproute2 is missing" >&2; exit 1; \
	 else echo "redis-server, PostgreSQL or iproute2 is missing: the tests that need them will be skipped"; fi

# ContextForge with trunkline beside it, which this proves to be possible: 0.9.0 with the lowest that it admits itself. What
# its users had before (mcp 1.21.0, fastapi 0.121.1, starlette 0.49.3, sse-starlette 3.0.3, pydantic 2.12.4) pip refuses beside
# it: its own metadata asks for mcp>=1.24.0, fastapi>=0.124.4, starlette>=0.50.0, sse-starlette>=3.0.4, pydantic>=2.12.5.
contextforge: .venv-cf09/.installed .venv-cf10/.installed

.venv-cf09/bin/python:
	$(call make_venv,.venv-cf09)

.venv-cf09/.installed: pyproject.toml | .venv-cf09/bin/python
	.venv-cf09/bin/python -m pip install -q --disable-pip-version-check -e . mcp-contextforge-gateway==0.9.0 \
	  mcp==1.24.0 fastapi==0.124.4 starlette==0.50.0 sse-starlette==3.0.4 pydantic==2.12.5 SQLAlchemy==2.0.45 'redis>=5'
	@touch $@

.venv-cf10/bin/python:
	$(call make_venv,.venv-cf10)

.venv-cf10/.installed: pyproject.toml | .venv-cf10/bin/python
	.venv-cf10/bin/python -m pip install -q --disable-pip-version-check -e . mcp-contextforge-gateway==1.0.7 'mcp>=1.28.1,<2'
	@touch $@

# Other proxies, in environments of their own: what `python -m bench.peers` compares with.
proxies: .proxies/.installed contextforge

.proxies/.installed:
	mkdir -p .proxies/node
	$(call make_venv,.proxies/mcp-proxy)
	.proxies/mcp-proxy/bin/python -m pip install -q --disable-pip-version-check mcp-proxy==0.13.0
	$(call make_venv,.proxies/fastmcp)
	.proxies/fastmcp/bin/python -m pip install -q --disable-pip-version-check fastmcp==4.2.3
	cd .proxies/node && npm install --no-audit --no-fund --loglevel=error mcp-proxy@6.7.19 supergateway@4.0.0
	@if command -v nginx >/dev/null; then :; \
	 elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   apt-get update -q && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends nginx-light; \
	 else echo "nginx is missing: it will be left out"; fi
	@touch $@

test-contextforge: $(VENV)/.dev .venv-sdk1/.installed contextforge
	$(BIN)/python -m pytest -q -m "contextforge and not slow" tests/end_to_end/contextforge $(ARGS)

.venv-sdk1/.installed:
	$(call make_venv,.venv-sdk1)
	.venv-sdk1/bin/python -m pip install -q --disable-pip-version-check 'mcp[ws]>=1.30,<2' uvicorn
	@touch $@

.node/.installed: tests/harness/node/package.json
	mkdir -p .node && cp tests/harness/node/package.json .node/
	@if command -v npm >/dev/null; then cd .node && npm install --no-audit --no-fund --loglevel=error; \
	 elif [ -n "$$CI" ]; then echo "npm is missing" >&2; exit 1; \
	 else echo "npm is missing: the tests with the TypeScript SDK and the conformance suite will be skipped"; fi
	@touch $@

.peers/.installed: | $(VENV)/bin/python
	mkdir -p .peers
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps --no-binary mcp -d .peers 'mcp==$(SDK)'
	tar xzf .peers/mcp-$(SDK).tar.gz -C .peers
	cp -r .peers/mcp-$(SDK)/examples/servers/everything-server .peers/everything-server
	rm -rf .peers/mcp-$(SDK)
	@touch $@
