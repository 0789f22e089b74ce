# What a person types. `make help` lists it.

# Bash, for `pipefail` and for `eval "$(...)"` below.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rolecall

# What the compiler leaves is shared by all clones, so that a second clone starts warm; the finished binaries
# are each clone's own, so that two clones at work at once do not run each other's. Whoever sets
# CARGO_TARGET_DIR has both there.
ifndef CARGO_TARGET_DIR
export CARGO_BUILD_BUILD_DIR ?= $(CACHE)/target
export CARGO_TARGET_DIR := $(CURDIR)/target
$(shell scripts/tools claim $(CARGO_BUILD_BUILD_DIR))
endif
BIN := $(CARGO_TARGET_DIR)/debug

# The programs as they ship, for the demo and the tests that run them.
BUILD_PROGRAMS := cargo build --locked --workspace --exclude rolecall-e2e --bins

# The tools' paths, for the tests and the demo.
WITH_TOOLS := eval "$$(scripts/tools env)"

# Ends what hangs, with all that it has started: they are a process group of their own, which gets the signal. At a
# terminal they are not, for such a group would never see Ctrl-C; what hangs there somebody has to end.
# It is to be started by `exec`: `make` hands SIGTERM on to what it has started, and a shell would keep it to itself.
LIMITED = timeout --kill-after=1m $$({ true </dev/tty; } 2>/dev/null && echo --foreground)

.PHONY: help
help: ## List what can be made
	@awk -F ' *## *' '/^[a-z][a-z0-9-]*:.*## / { sub(/:.*/, "", $$1); printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Two pods get their own credentials, without a cluster or AWS; CHECK=1 proves it with boto3 and exits
ifeq ($(CHECK),1)
	@scripts/tools check curl
	@scripts/tools install python
endif
	@scripts/tools check cargo cc
	@$(BUILD_PROGRAMS)
	@$(WITH_TOOLS); exec $(BIN)/rolecall-sandbox demo --daemon $(BIN)/rolecall-daemon $(DEMO_CHECK)

ifeq ($(CHECK),1)
demo: DEMO_CHECK = --check --python "$$ROLECALL_PYTHON"
endif

.PHONY: test
test: tools ## Run all tests: the fast ones, then those against real parts
	@$(BUILD_PROGRAMS)
	@$(WITH_TOOLS); exec $(LIMITED) 40m cargo test --locked --workspace --no-fail-fast

.PHONY: test-fast
test-fast: ## Run the tests that need no root, no cluster and no network
	@cargo test --locked --workspace --exclude rolecall-e2e

# Coverage-guided search by libFuzzer. What it needs of the compiler, the stable one has; the sanitizers, which it has
# not, look for mistakes that a program without unsafe code does not make. `make test` replays the corpus.
FUZZ_TARGETS := review config_map role_arn
FUZZ_SECONDS ?= 60
FUZZ_COVERAGE := -Cpasses=sancov-module -Ccodegen-units=1 $(addprefix -Cllvm-args=-sanitizer-coverage-, \
	level=4 inline-8bit-counters pc-table trace-compares)
FUZZ_RUN = cargo run --locked --release --manifest-path shim/fuzz/Cargo.toml --bin

.PHONY: fuzz
fuzz: ## Search for inputs that break the shim's parsers, each for FUZZ_SECONDS (60)
	@scripts/tools check cargo c++
	@host=$$(rustc -vV | sed -n 's/^host: //p'); \
	for target in $(FUZZ_TARGETS); do \
		found=$(CARGO_TARGET_DIR)/fuzz/$$target; mkdir -p "$$found"; \
		RUSTFLAGS="$(FUZZ_COVERAGE)" $(FUZZ_RUN) $$target --target "$$host" -- -max_total_time=$(FUZZ_SECONDS) \
			-max_len=65536 -artifact_prefix="$$found-" "$$found" shim/fuzz/corpus/$$target; \
	done

.PHONY: ci
ci: format lint docs deny test ## Everything that must pass before a change is accepted

.PHONY: format
format: ## Check the formatting
	@cargo fmt --all --check

.PHONY: lint
lint: ## Run clippy, warnings denied
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@# The fuzzers are outside of the workspace: their lock file has to follow it.
	@cargo metadata --locked --format-version 1 --manifest-path shim/fuzz/Cargo.toml >/dev/null

.PHONY: docs
docs: ## Build the API documentation, warnings denied
	@RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps

# The advisories are left out: their database is a git repository of its own, and a build that depends on what
# was pushed there today fails without a change of ours. Run `cargo deny check advisories` by hand.
.PHONY: deny
deny: ## Check licenses, banned and duplicate crates, and where crates come from
	@scripts/tools install cargo-deny
	@$(WITH_TOOLS); "$$ROLECALL_CARGO_DENY" --locked check bans licenses sources

# The script itself says what it takes: ARCH, SYSROOT, BASE, IMAGE_PREFIX.
.PHONY: image
image: ## Build the container images without pulling anything; IMAGE_PREFIX=registry/path/, ARCH=arm64
	@scripts/tools install $(or $(ARCH:%=image-%),packages)
	@deploy/image/build

# Not a part of `ci`: it compiles everything for release, twice.
IMAGES := $(CARGO_TARGET_DIR)/image

.PHONY: multi-arch
multi-arch: ## Build the images for amd64 and arm64, run those for arm64 in an emulated machine, join both under one name
	@scripts/tools install image-amd64 image-arm64 machine-arm64
	@ARCH=arm64 deploy/image/build $(IMAGES)/arm64
	@deploy/image/check $(IMAGES)/arm64
	@ARCH=amd64 deploy/image/build $(IMAGES)/amd64
	@deploy/image/join $(IMAGES) $(IMAGES)/amd64 $(IMAGES)/arm64

# What the cluster runs is what is released: the images. What looks at it need not be fast.
E2E = $(WITH_TOOLS); $(BIN)/rolecall-e2e

# Pods of each race, of which there are four, and of four others together while daemons come and go.
RACE_PODS = 200

.PHONY: e2e
e2e: e2e-built ## Show everything on a real cluster of this machine, as root; SCENARIO=race for one, RACE_PODS=40
	@scripts/tools install sdks
	@$(E2E) run --images $(CARGO_TARGET_DIR)/image --race-pods $(RACE_PODS) $(SCENARIO:%=--scenario %) $(if $(SCENARIO),,--docs docs)
	@$(E2E) traces

# What fits into every change: not what takes its time by nature, nor what measures it, for which a machine is too busy
# that builds as well. The SDKs renew their credentials in `make test`. Of those that race here, one is for Java: it is
# compiled with a JDK and Maven, which somebody else has to install.
E2E_CI := late-daemon wrong-pod metadata uninstall

.PHONY: e2e-ci
e2e-ci: e2e-built ## Show the most important of it in a few minutes, as CI does
	@scripts/tools install sdk-go sdk-java node python
	@$(WITH_TOOLS); exec $(LIMITED) 20m $(BIN)/rolecall-e2e run --images $(CARGO_TARGET_DIR)/image --race-pods 40 $(E2E_CI:%=--scenario %)

.PHONY: e2e-up
e2e-up: e2e-built ## Start that cluster and leave it up, to look around
	@$(E2E) up --images $(CARGO_TARGET_DIR)/image

.PHONY: e2e-down
e2e-down: ## End every such cluster and remove what a killed one has left
	@cargo build --locked -p rolecall-e2e --bins
	@$(E2E) down

.PHONY: e2e-built
e2e-built: image
	@scripts/tools install cluster
	@cargo build --locked -p rolecall-e2e --bins

# The daemon as it ships, but with the names of its functions, which are no part of what is loaded: profiles show them.
# The same for the floor, which is a part of the benchmarks.
.PHONY: bench
bench: ## Measure the daemon against the floor and its goals, and write benches/README.md; ONLY=serve runs one part
	@scripts/tools check cargo cc setpriv
	@deploy/image/compile host rolecall-daemon -- -C strip=none >/dev/null
	@cargo bench --quiet --locked --no-run -p rolecall-benches --bench micro --bench scaling
	@cargo rustc --locked --release -p rolecall-benches --bin rolecall-benches -- -C strip=none
	@$(CARGO_TARGET_DIR)/release/rolecall-benches $(or $(ONLY),--write benches)

# To be done again when a bench shows more of the program's code in memory: what runs has changed.
.PHONY: link-order
link-order: ## Write down which of the daemon's functions run, for the linker to lay them near together; needs valgrind
	@scripts/tools check cargo cc setpriv
	@cargo rustc --locked --release -p rolecall-daemon --bin rolecall-daemon -- -C strip=none
	@cargo rustc --locked --release -p rolecall-benches --bin rolecall-benches -- -C strip=none
	@$(CARGO_TARGET_DIR)/release/rolecall-benches order >$(CARGO_TARGET_DIR)/symbols
	@deploy/image/cc --list <$(CARGO_TARGET_DIR)/symbols >$(CARGO_TARGET_DIR)/link-order.gz
	@mv $(CARGO_TARGET_DIR)/link-order.gz daemon/link-order.gz

.PHONY: tools
tools: ## Install what the tests need: kube-apiserver, etcd, the AWS SDKs, moto, and as root nftables and iptables
	@scripts/tools check cargo cc node setpriv
	@scripts/tools install

.PHONY: clean-cache
clean-cache: ## Remove everything that was cached outside this folder
	@scripts/tools clean
