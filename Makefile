# runvm: every target works on a fresh Debian 12 machine, as root or with sudo.

GUEST   := target/release/guest
AGENT   := target/x86_64-unknown-linux-gnu/agent/agent
# Cargo shows its progress where somebody looks on.
QUIET   := $(shell [ -t 2 ] || echo --quiet)
PREFIX  ?= /usr/local
DESTDIR ?=
KERNEL  :=
# Of `make fuzz`: time for each target, and which ones.
SECONDS := 60
TARGET  :=

.PHONY: all build deps lab kernel agent guest runtime demo test check fuzz bench counts install clean help

all: build

help: ## show this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

build: kernel runtime guest ## build target/release/runvm and target/release/guest

deps:
	@./tools/deps

lab: deps
	@tests/lab/setup >/dev/null

kernel: deps ## build the guest kernel (cached; KERNEL_SRC=DIR takes another tree, KERNEL=debug or stock another flavour)
	@guest-kernel/build $(addprefix --,$(KERNEL)) >/dev/null

agent: deps
	@RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
		cargo build $(QUIET) -p agent --profile agent --target x86_64-unknown-linux-gnu

# Static, still position independent: no dynamic linker in the two executions that each start needs.
runtime: deps
	@cargo rustc $(QUIET) --release -p runvm --bin runvm -- -C target-feature=+crt-static

# The kernel and the initrd where runvm finds them: beside its own binary.
guest: kernel agent
	@cargo run $(QUIET) --release -p initrd --bin pack-guest -- \
		--agent $(AGENT) --kernel "$$(guest-kernel/build $(addprefix --,$(KERNEL)) 2>/dev/null | tail -n 1)/vmlinux" --out "$(GUEST)"

demo: ## set everything up and run a Debian container in a microVM
	@tools/demo

test: ## every test: units on this machine, the rest in the lab
	@tools/test

check: deps ## rustfmt, clippy and rustdoc without warnings; licences of dependencies
	@cargo fmt --all --check
	@rustfmt --check --edition 2024 fuzz/libfuzzer/main.rs
	@cargo clippy --quiet --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items
	@cargo test --quiet -p tests --test dependencies
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check licenses bans sources; \
		else echo "cargo-deny is not here (cargo install --locked cargo-deny): deny.toml was held against licences and sources only"; fi

fuzz: deps ## give made-up bytes to what parses a guest's (SECONDS=60 for each TARGET="files rings …", all of them by default)
	@fuzz/run $(SECONDS) $(TARGET)

bench: lab build ## compare with crun, QEMU microvm and, with FIRECRACKER=path, Firecracker
	@bench/run

counts: lab build ## what operations cost in instructions, exits, calls; against bench/counts.json
	@bench/run counts

install: build ## install to $(DESTDIR)$(PREFIX)
	install -D -m 755 target/release/runvm "$(DESTDIR)$(PREFIX)/bin/runvm"
	install -d "$(DESTDIR)$(PREFIX)/lib/runvm" "$(DESTDIR)$(PREFIX)/share/man/man8" "$(DESTDIR)$(PREFIX)/share/bash-completion/completions"
	target/release/runvm man >"$(DESTDIR)$(PREFIX)/share/man/man8/runvm.8"
	target/release/runvm completion bash >"$(DESTDIR)$(PREFIX)/share/bash-completion/completions/runvm"
	install -m 644 "$(GUEST)/vmlinux" "$(GUEST)/initrd" "$(GUEST)/manifest.json" "$(DESTDIR)$(PREFIX)/lib/runvm/"

clean: ## remove what was built here (the kernel's cache stays)
	cargo clean
