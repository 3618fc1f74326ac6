/*
 * A QEMU TCG plugin that counts what a guest kernel executes between its entry
 * point and the first instruction of its init, then ends QEMU.
 *
 *   -plugin count.so,entry=PHYS,init=VIRT,out=FILE
 *
 * FILE gets one line each of
 *   total N            instructions
 *   exits KIND N       instructions that leave a VM on hardware
 *   mmio N             accesses to device memory
 *   pages N WRITTEN    distinct 4 KiB pages of guest memory touched and written
 *   at ADDRESS N       how often the kernel instruction at ADDRESS ran
 *   mmio-at, exit-at   the same for accesses to device memory, exits
 *
 * QEMU ships no plugin header in its packages: the few declarations of its
 * version 1 interface that are used here follow, as documented in
 * docs/devel/tcg-plugins.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct plugin_info;
struct tb;
struct insn;
struct hwaddr;
typedef uint32_t meminfo;
enum { NO_REGS = 0, MEM_RW = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct tb *));
size_t qemu_plugin_tb_n_insns(const struct tb *);
struct insn *qemu_plugin_tb_get_insn(const struct tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct insn *);
const void *qemu_plugin_insn_data(const struct insn *);
size_t qemu_plugin_insn_size(const struct insn *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct insn *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_mem_cb(struct insn *, void (*)(unsigned, meminfo, uint64_t, void *), int, int, void *);
bool qemu_plugin_mem_is_store(meminfo);
struct hwaddr *qemu_plugin_get_hwaddr(meminfo, uint64_t);
bool qemu_plugin_hwaddr_is_io(const struct hwaddr *);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct hwaddr *);

EXPORT int qemu_plugin_version = 1;

/* Kernel text lives in [TEXT, TEXT + SPAN); one counter per byte, never all touched. */
#define TEXT 0xffffffff80000000ull
#define SPAN (64ull << 20)
#define PAGES (1ull << 24) /* 64 GiB of guest memory */

enum { CPUID, RDMSR, WRMSR, PORT, HLT, CR, XSETBV, INVD, HYPERCALL, KINDS };
static const char *const names[KINDS] = {"cpuid", "rdmsr", "wrmsr", "port", "hlt", "cr", "xsetbv", "wbinvd", "hypercall"};

static uint64_t *at, *mmio_at, *exit_at;
static uint8_t *touched;
static uint64_t total, exits[KINDS], mmio, pages, written;
static uint64_t entry, init;
static const char *out_path;
static bool counting;

static int kind_of(const uint8_t *c, size_t n)
{
	while (n > 1 && (*c == 0x66 || *c == 0xf2 || *c == 0xf3 || (*c & 0xf0) == 0x40))
		c++, n--;
	if (*c == 0xf4)
		return HLT;
	if ((*c >= 0xe4 && *c <= 0xe7) || (*c >= 0xec && *c <= 0xef) || (*c >= 0x6c && *c <= 0x6f))
		return PORT;
	if (*c != 0x0f || n < 2)
		return -1;
	switch (c[1]) {
	case 0xa2: return CPUID;
	case 0x32: return RDMSR;
	case 0x30: return WRMSR;
	case 0x09: case 0x08: return INVD;
	case 0x22: /* mov to cr0 or cr4; cr3 doesn't exit with nested paging */
		return n > 2 && ((c[2] >> 3 & 7) == 0 || (c[2] >> 3 & 7) == 4) ? CR : -1;
	case 0x01:
		if (n > 2 && c[2] == 0xd1) return XSETBV;
		return n > 2 && (c[2] == 0xc1 || c[2] == 0xd9) ? HYPERCALL : -1;
	}
	return -1;
}

static void dump_counts(FILE *f, const char *what, const uint64_t *counts)
{
	for (uint64_t i = 0; i < SPAN; i++)
		if (counts[i])
			fprintf(f, "%s %016" PRIx64 " %" PRIu64 "\n", what, (uint64_t)(TEXT + i), counts[i]);
}

static void on_init(unsigned cpu, void *data)
{
	(void)cpu, (void)data;
	FILE *f = fopen(out_path, "w");
	if (!f) {
		perror(out_path);
		_exit(1);
	}
	fprintf(f, "total %" PRIu64 "\n", total);
	for (int k = 0; k < KINDS; k++)
		fprintf(f, "exits %s %" PRIu64 "\n", names[k], exits[k]);
	fprintf(f, "mmio %" PRIu64 "\npages %" PRIu64 " %" PRIu64 "\n", mmio, pages, written);
	dump_counts(f, "at", at);
	dump_counts(f, "mmio-at", mmio_at);
	dump_counts(f, "exit-at", exit_at);
	fclose(f);
	_exit(0);
}

static void on_entry(unsigned cpu, void *data)
{
	(void)cpu, (void)data;
	counting = true;
}

static void on_insn(unsigned cpu, void *data)
{
	(void)cpu;
	uint64_t offset = (uint64_t)(uintptr_t)data - TEXT;
	if (!counting)
		return;
	total++;
	if (offset < SPAN)
		at[offset]++;
}

static void on_exit_insn(unsigned cpu, void *data)
{
	(void)cpu;
	/* Kind in the top byte, offset of the address below it. */
	uint64_t packed = (uint64_t)(uintptr_t)data, offset = packed & ((1ull << 56) - 1);
	if (!counting)
		return;
	exits[packed >> 56]++;
	if (offset < SPAN)
		exit_at[offset]++;
}

static void on_mem(unsigned cpu, meminfo info, uint64_t vaddr, void *data)
{
	(void)cpu;
	struct hwaddr *hw;
	if (!counting || !(hw = qemu_plugin_get_hwaddr(info, vaddr)))
		return;
	if (qemu_plugin_hwaddr_is_io(hw)) {
		uint64_t offset = (uint64_t)(uintptr_t)data - TEXT;
		mmio++;
		if (offset < SPAN)
			mmio_at[offset]++;
		return;
	}
	uint64_t page = qemu_plugin_hwaddr_phys_addr(hw) >> 12;
	if (page >= PAGES)
		return;
	if (!touched[page])
		pages++;
	touched[page] |= 1;
	if (qemu_plugin_mem_is_store(info) && !(touched[page] & 2)) {
		touched[page] |= 2;
		written++;
	}
}

static void on_translate(plugin_id id, struct tb *tb)
{
	(void)id;
	size_t n = qemu_plugin_tb_n_insns(tb);
	for (size_t i = 0; i < n; i++) {
		struct insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t address = qemu_plugin_insn_vaddr(insn);
		if (address == init)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_init, NO_REGS, NULL);
		if (address == entry)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_entry, NO_REGS, NULL);
		qemu_plugin_register_vcpu_insn_exec_cb(insn, on_insn, NO_REGS, (void *)(uintptr_t)address);
		qemu_plugin_register_vcpu_mem_cb(insn, on_mem, NO_REGS, MEM_RW, (void *)(uintptr_t)address);
		int kind = kind_of(qemu_plugin_insn_data(insn), qemu_plugin_insn_size(insn));
		if (kind >= 0) {
			uint64_t offset = (address - TEXT) & ((1ull << 56) - 1);
			uint64_t packed = (uint64_t)kind << 56 | offset;
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_exit_insn, NO_REGS, (void *)(uintptr_t)packed);
		}
	}
}

static void *lazily(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return p;
}

EXPORT int qemu_plugin_install(plugin_id id, const struct plugin_info *info, int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "entry=", 6))
			entry = strtoull(argv[i] + 6, NULL, 0);
		else if (!strncmp(argv[i], "init=", 5))
			init = strtoull(argv[i] + 5, NULL, 0);
		else if (!strncmp(argv[i], "out=", 4))
			out_path = strdup(argv[i] + 4);
	}
	if (!entry || !init || !out_path) {
		fprintf(stderr, "count.so: entry=, init= and out= are needed\n");
		return 1;
	}
	at = lazily(SPAN * 8);
	mmio_at = lazily(SPAN * 8);
	exit_at = lazily(SPAN * 8);
	touched = lazily(PAGES);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
	return 0;
}
