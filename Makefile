# VMSRS: targets that need a guest fetch and install what they use first; `make help` lists the targets.

CARGO ?= cargo
BED = $(CARGO) run --quiet --release -p vmsrs-bed --

# What cargo-fuzz sets, without the address sanitizer, which needs a nightly compiler.
FUZZ_TARGETS = control evidence
FUZZ_FLAGS = --cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions \
	-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares

.PHONY: help demo port-memcached port-mosquitto port-redis build-ports bench profile costs baseline integral campaign campaigns test build build-demo build-campaign build-bench headers kmod \
	lint unit e2e shortcampaign fuzz propagation fetch trixie deb deb-test guest-image walk debug-kernel clean

# What every target with a guest needs: the vmsrs command and the library. A target builds only what it uses.
PRODUCT = -p vmsrs-host -p vmsrs

# Parameters of the campaign; see docs/campaign.md.
SEED ?= 1
ERRORS ?= 10000
VCPUS ?= 2
SERVER ?= c
CAMPAIGN = $(CARGO) run --quiet --release -p vmsrs-campaign -- --seed $(SEED) --vcpus $(VCPUS) --server $(SERVER)
.DEFAULT_GOAL := help
# cargo uses all CPUs by itself.
.NOTPARALLEL:

# The kernel that test guests run: 6.1 (the default), 6.12 or debug (KASAN, lockdep, ...; built on first use).
ifdef KERNEL
export VMSRS_KERNEL = $(KERNEL)
endif

help: ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | expand -t 15

demo: fetch build-demo ## Boot a guest, let requests corrupt memory, show that no other request notices
	$(CARGO) run --quiet --release -p vmsrs-demo

campaign: fetch build-campaign ## Inject 10,000 errors of every kind into a guest and judge the outcome (SEED= ERRORS= VCPUS= SERVER=)
	$(CAMPAIGN) --errors $(ERRORS)

campaigns: fetch build-campaign ## Run the campaign nine times, for the record: seeds 1 to 3, with 1, 2 and 4 vCPUs (ERRORS= SERVER=)
	$(CARGO) run --quiet --release -p vmsrs-campaign -- --matrix --errors $(ERRORS) --server $(SERVER)

port-memcached: fetch build-ports ## Port Debian's memcached: its own tests, load, costs and errors in a guest (PARTS=suite,load,...)
	$(CARGO) run --quiet --release -p vmsrs-ports -- memcached $(if $(PARTS),--parts $(PARTS))

port-mosquitto: fetch build-ports ## Port Debian's mosquitto: load, costs and errors in a guest (PARTS=load,throughput,...)
	$(CARGO) run --quiet --release -p vmsrs-ports -- mosquitto $(if $(PARTS),--parts $(PARTS))

port-redis: fetch build-ports ## Port Debian's redis: its own tests, load, costs and errors in a guest (PARTS=suite,load,...)
	$(CARGO) run --quiet --release -p vmsrs-ports -- redis $(if $(PARTS),--parts $(PARTS))

test: fetch lint kmod unit costs e2e shortcampaign ## Run all checks and tests

build: ## Build the whole workspace: the vmsrs command, the library, the servers and the test programs
	$(CARGO) build --release --workspace

build-demo:
	$(CARGO) build --release $(PRODUCT) -p vmsrs-demo

build-campaign:
	$(CARGO) build --release $(PRODUCT) -p vmsrs-campaign $(if $(filter rust,$(SERVER)),-p ledger-rs)

build-ports:
	$(CARGO) build --release $(PRODUCT) -p vmsrs-ports

build-bench:
	$(CARGO) build --release $(PRODUCT) -p vmsrs-bench

headers: ## Generate the C headers from their Rust sources
	$(CARGO) run --quiet -p vmsrs-headers

kmod: fetch ## Build the driver for Linux 6.1 and 6.12 (KERNEL=: for one of them, or debug): no warnings, sparse clean
	$(BED) kmod $(addprefix --kernel ,$(KERNEL))

lint: ## Check format, clippy, header drift, and licences where cargo-deny is installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) test -p vmsrs-headers
	$(CARGO) check --manifest-path tests/fuzz/Cargo.toml --target-dir target/fuzz
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --offline check bans licenses sources; \
	else \
		echo "cargo-deny is not installed: licences are not checked"; \
	fi

unit: fetch ## Run unit and property tests, and those of the test-bed
	$(CARGO) test --workspace --exclude vmsrs-e2e --exclude vmsrs-headers
	$(CARGO) test --release -p vmsrs --lib common_request

# On the nested host all code is emulated, which only an optimised build is fast enough for.
e2e: fetch ## Run the end-to-end tests in a real guest (KERNEL=debug: with KASAN and lockdep)
	$(CARGO) test --release -p vmsrs-e2e

shortcampaign: fetch build-campaign ## Run a campaign of 300 errors, none of which ends the server
	$(CAMPAIGN) --errors 300 --no-restarts

fuzz: ## Fuzz what the host reads from its guest, for TIME seconds per target (60)
	@cd tests/fuzz && for target in $(FUZZ_TARGETS); do \
		mkdir -p ../../target/fuzz/corpus/$$target && \
		RUSTFLAGS='$(FUZZ_FLAGS)' $(CARGO) run --release --target-dir ../../target/fuzz \
			--target x86_64-unknown-linux-gnu --bin $$target -- -max_len=4096 \
			-max_total_time=$(or $(TIME),60) $(CURDIR)/target/fuzz/corpus/$$target || exit 1; \
	done

propagation: ## Corrupt words of an unprotected server and trace how long they live and who reads them
	$(CARGO) run --quiet --release -p vmsrs-propagation

fetch: ## Fetch Debian's kernels and QEMU into build/cache and install missing tools
	$(CARGO) build --release -p vmsrs-bed
	$(BED) fetch

trixie: ## Run make fetch, kmod and demo in a fresh Debian 13 below build/ (as root; TARGETS= for others)
	tests/bed/trixie.sh $(TARGETS)

# The release of Debian that packages and guests are for: bookworm or trixie; by default the machine's own.
export DEB_SUITE

deb: ## Build Debian packages into build/deb: vmsrs, libvmsrs1, libvmsrs-dev and vmsrs-dkms (DEB_SUITE=trixie: for Debian 13, as root)
	packaging/deb.sh

deb-test: deb ## Check the packages with lintian, and install, use and purge them in a fresh Debian (as root; DEB_SUITE=)
	tests/packages/test.sh $(DEB_SUITE)

guest-image: deb ## Make a guest's root disk with systemd, the packages and the ledger, in build/guest (as root; DEB_SUITE=)
	$(CARGO) build --release -p vmsrs-walk
	tests/walk/image.sh guest $(DEB_SUITE)

walk: fetch guest-image ## Run the commands of docs/operating.md, from the packages to the first incident, on a host with systemd (as root; DEB_SUITE=)
	tests/walk/image.sh host $(DEB_SUITE)
	$(CARGO) run --quiet --release -p vmsrs-walk -- run build/walk/$(or $(DEB_SUITE),$$(. /etc/os-release && echo $$VERSION_CODENAME))

BENCH = $(CARGO) run --quiet --release -p vmsrs-bench --

bench: fetch build-bench ## Measure the cost of requests and errors, by a clock that counts instructions (DOMAINS=)
	$(BENCH) --deterministic $(if $(DOMAINS),--domains $(DOMAINS))

costs: fetch build-bench ## Compare the instructions of the main requests with tests/bench/baseline.json: at most 5 % apart
	$(BENCH) --baseline check

baseline: fetch build-bench ## Make today's instructions the baseline
	$(BENCH) --baseline renew

profile: fetch build-bench ## Count the benchmark's instructions by function, in guest, host kernel and vmsrs run
	$(BENCH) --profile

integral: fetch build-demo ## Measure the latency of ordinary requests while one in ten is fatal
	$(CARGO) run --quiet --release -p vmsrs-demo -- integral

debug-kernel: ## Build a guest kernel with KASAN, lockdep and other checkers, and the driver for it
	$(BED) debug-kernel

clean: ## Remove everything that was built, but not what was fetched
	$(CARGO) clean
	rm -rf build/kmod
