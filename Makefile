# The few commands a person types. Each is a short door to a program that explains itself.
SHELL := /bin/sh
PYTHON := .venv/bin/python
# Root is needed to start machines; whoever is not root is asked by sudo once, and keeps the settings he exported.
# Where there is no sudo either, what is called says that it needs root.
ROOT := $(shell [ "$$(id -u)" = 0 ] || ! command -v sudo >/dev/null || printf 'sudo --preserve-env')
# `make bench tti` measures that alone
MEASURED := $(if $(filter bench,$(MAKECMDGOALS)),$(filter-out bench,$(MAKECMDGOALS)))

# Emulated machines, and processes beside each other, share a host with whoever else is on it: what fails is tried once
# more, and listed as RERUN
AGAIN := --reruns 1 -rR

.PHONY: up down env doctor login-link disk disk-clean test lint bench soak screenshot $(MEASURED)

up:                ## install what is missing, then run everything in the foreground
	@$(ROOT) sh vm/host/bootstrap.sh up
	@$(ROOT) $(PYTHON) manage.py up

down:              ## stop what `make up` runs
	@$(ROOT) $(PYTHON) manage.py down

env:               ## the exports a client needs, for the running server: eval "$$(make -s env)"
	@[ -x $(PYTHON) ] || { echo 'Atoll is not installed here yet: run "make up" first.' >&2; exit 1; }
	@$(ROOT) $(PYTHON) manage.py client_env

doctor:            ## is this host fit, and if not, what to do; installs nothing. ISOLATION=1 reports each attempt to get out
	@if [ -x $(PYTHON) ]; then $(ROOT) $(PYTHON) manage.py doctor $(if $(ISOLATION),--isolation); \
	else $(ROOT) python3 -m vm.host.preflight "$${ATOLL_DATA:-/var/lib/atoll}"; fi

login-link:        ## a new one-time sign-in link; EMAIL=… for another member
	@$(ROOT) $(PYTHON) manage.py login-link $(EMAIL)

disk:              ## what takes room, and what could be removed
	@$(ROOT) $(PYTHON) manage.py disk

disk-clean:        ## remove what nothing needs any more
	@$(ROOT) $(PYTHON) manage.py disk --clean

test:              ## install what tests need and run the whole suite
	@$(ROOT) sh vm/host/bootstrap.sh test
	@$(ROOT) $(PYTHON) -m pytest -q -n 3 $(AGAIN) --database=postgres tests/sandboxes tests/ide/rpc
	@$(ROOT) $(PYTHON) -m pytest -q -n 4 $(AGAIN) -m "not live and not browser and not sdk"
	@$(ROOT) $(PYTHON) -m pytest -n 2 --dist loadfile $(AGAIN) -m "(live or sdk) and not browser"
	@$(ROOT) $(PYTHON) -m pytest -n 2 --dist loadfile $(AGAIN) -m browser

lint:              ## style, types, import rules, front end checks
	@$(ROOT) sh vm/host/bootstrap.sh test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	PATH="$$PWD/.tools/node/bin:$$PATH" npm --prefix frontend run check && PATH="$$PWD/.tools/node/bin:$$PATH" npm --prefix frontend run lint

bench:             ## every number beside its reference, taken in the same run; `make bench tti` for some of them
	@$(ROOT) sh vm/host/bootstrap.sh test
	@$(ROOT) $(PYTHON) -m bench $(MEASURED)

$(MEASURED):
	@:

soak:              ## 500 creates and kills in a row, half an hour of kill -9 at random points, two minutes of fifty clients
	@$(ROOT) sh vm/host/bootstrap.sh test
	@$(ROOT) $(PYTHON) -m pytest -s --soak=1800 tests/soak

screenshot:        ## README's picture of a workspace, taken anew from a real installation
	@$(ROOT) sh vm/host/bootstrap.sh test
	@$(ROOT) $(PYTHON) -m tests.browser.screenshot
