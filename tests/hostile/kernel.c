/* A guest kernel that attacks its monitor, for the test area `hostile`.
 *
 * The VMM enters it as it enters Linux: 64-bit mode, the first GiB mapped one to one. It has no interrupts, and any exception
 * is a triple fault, which ends the machine. What it has to say it leaves where Linux leaves its last words (ramoops), so
 * that the monitor prints it.
 *
 * MODE is the attack, a function below; AGENT_VERSION the version of the protocol that the real agent speaks. See `build`.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define ALIGNED(n) __attribute__((aligned(n)))
#define MAX_SLOTS 19
#define QUEUES 3
#define QUEUE_SIZE 8
/* Buffers for attacks that have the device write wherever it likes: far from this kernel. */
#define SCRATCH 0x4000000ul
#define SCRATCH_SIZE 0x2000000ul

/* ---- start ------------------------------------------------------------------------------------------------------------ */

__asm__(".section .start,\"ax\"\n"
        ".globl start\n"
        "start:\n"
        "  lea stack_top(%rip), %rsp\n"
        "  xor %ebp, %ebp\n"
        "  call begin\n"
        ".section .bss\n"
        ".balign 16\n"
        ".skip 32768\n"
        "stack_top:\n"
        ".text\n");

void *memset(void *to, int byte, u64 n) { for (u8 *at = to; n--;) *at++ = byte; return to; }
void *memcpy(void *to, const void *from, u64 n) { u8 *a = to; const u8 *b = from; while (n--) *a++ = *b++; return to; }

static u64 seed = 0x9e3779b97f4a7c15ul;
static u64 random(void) { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return seed; }
/* As many bytes, rounded up to eight. */
static void random_bytes(void *to, u64 n) { for (u64 *at = to, *end = at + (n + 7) / 8; at < end;) *at++ = random(); }

static void out(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static void pause(void) { __asm__ volatile("pause" ::: "memory"); }

/* ---- last words ------------------------------------------------------------------------------------------------------- */

#define RAMOOPS 0x90000ul
static u8 *words = (u8 *)RAMOOPS + 12;
static void say(const char *text) { while (*text) *words++ = *text++; }
static void say_number(long value) {
  char digits[24], *at = digits + 23;
  u64 left = value < 0 ? -value : value;
  *at = 0;
  do *--at = '0' + left % 10; while (left /= 10);
  if (value < 0) *--at = '-';
  say(at);
}
static void note(const char *what, long value) { say(" "); say(what); say(" "); say_number(value); say(";"); }

/* Ends the machine; the monitor prints what was said. */
static void end(void) {
  volatile u32 *zone = (u32 *)RAMOOPS;
  zone[1] = 0;
  zone[2] = words - (u8 *)RAMOOPS - 12;
  zone[0] = 0x43474244; /* DBGC */
  __asm__ volatile("ud2");
  __builtin_unreachable();
}

/* ---- virtio-mmio ------------------------------------------------------------------------------------------------------ */

enum { NET = 1, BLOCK = 2, RNG = 4, BALLOON = 5, VSOCK = 19, FS = 26 };
enum { MAGIC = 0x00, ID = 0x08, FEATURES = 0x20, FEATURES_SEL = 0x24, QUEUE_SEL = 0x30, SIZE = 0x38, READY = 0x44, NOTIFY = 0x50,
       STATUS = 0x70, DESC = 0x80, DRIVER = 0x90, DEVICE = 0xa0 };

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct ring {
  struct descriptor descriptors[16];
  struct { u16 flags, index, ring[16], event; } available;
  u16 gap;
  struct { u16 flags, index; struct { u32 id, length; } ring[16]; u16 event; } used ALIGNED(4);
} ALIGNED(512);
static volatile struct ring ring_memory[MAX_SLOTS + 1][QUEUES];
static u16 offered[MAX_SLOTS + 1][QUEUES], seen[MAX_SLOTS + 1][QUEUES];

enum { NEXT = 1, WRITABLE = 2 };

static volatile u32 *reg(u32 slot, u32 offset) { return (u32 *)(0xd0000000ul + slot * 4096ul + offset); }
static int present(u32 slot) { return *reg(slot, MAGIC) == 0x74726976 && *reg(slot, ID) != 0; }
static int find(u32 id) {
  for (u32 slot = 0; slot < MAX_SLOTS; slot++)
    if (present(slot) && *reg(slot, ID) == id) return slot;
  return -1;
}
/* Queues that the driver uses: the balloon's third is the one for free pages. */
static u32 queues_of(u32 id) { return id == VSOCK || id == BALLOON ? 3 : id == NET || id == FS ? 2 : 1; }

static void set64(u32 slot, u32 offset, u64 value) { *reg(slot, offset) = value; *reg(slot, offset + 4) = value >> 32; }

static void negotiate(u32 slot, u32 features) {
  *reg(slot, STATUS) = 0;
  *reg(slot, STATUS) = 1;
  *reg(slot, STATUS) = 3;
  *reg(slot, FEATURES_SEL) = 1;
  *reg(slot, FEATURES) = 1; /* VERSION_1 */
  *reg(slot, FEATURES_SEL) = 0;
  *reg(slot, FEATURES) = features;
  *reg(slot, STATUS) = 11;
}

static void set_up_queue(u32 slot, u32 queue, u64 descriptors, u64 available, u64 used) {
  *reg(slot, QUEUE_SEL) = queue;
  *reg(slot, SIZE) = QUEUE_SIZE;
  set64(slot, DESC, descriptors);
  set64(slot, DRIVER, available);
  set64(slot, DEVICE, used);
  *reg(slot, READY) = 1;
}

static void set_up_good_queue(u32 slot, u32 queue) {
  volatile struct ring *ring = &ring_memory[slot][queue];
  memset((void *)ring, 0, sizeof *ring);
  offered[slot][queue] = seen[slot][queue] = 0;
  set_up_queue(slot, queue, (u64)ring->descriptors, (u64)&ring->available, (u64)&ring->used);
}

/* A device that works, as a good driver would have it. */
static void start_device(u32 slot) {
  negotiate(slot, 0);
  for (u32 queue = 0; queue < queues_of(*reg(slot, ID)); queue++) set_up_good_queue(slot, queue);
  *reg(slot, STATUS) = 15;
}

static void describe(u32 slot, u32 queue, u32 at, const void *buffer, u32 length, u16 flags, u16 next) {
  volatile struct descriptor *d = &ring_memory[slot][queue].descriptors[at];
  d->address = (u64)buffer, d->length = length, d->flags = flags, d->next = next;
}

static void offer(u32 slot, u32 queue, u16 head) {
  volatile struct ring *ring = &ring_memory[slot][queue];
  ring->available.ring[offered[slot][queue] % QUEUE_SIZE] = head;
  __asm__ volatile("mfence" ::: "memory");
  ring->available.index = ++offered[slot][queue];
  __asm__ volatile("mfence" ::: "memory");
}

/* Waits for the device to use a chain: its descriptor, or -1 when it does not. */
static int take_used(u32 slot, u32 queue, u64 patience) {
  volatile struct ring *ring = &ring_memory[slot][queue];
  while (ring->used.index == seen[slot][queue]) {
    if (!patience-- || *reg(slot, STATUS) & 64) return -1;
    pause();
  }
  return ring->used.ring[seen[slot][queue]++ % QUEUE_SIZE].id;
}

#define PATIENCE 20000000ul

/* ---- attack: registers ------------------------------------------------------------------------------------------------ */

/* Any value anywhere, as wide as it gets, in the devices' pages, behind them, and in ports. */
static void registers(void) {
  for (u32 round = 0; round < 6000; round++) {
    u64 width = 1ul << random() % 4, at = 0xd0000000ul + random() % 24 * 4096 + (random() % 0x200 & ~(width - 1));
    u64 values[] = {0, 1, 3, 11, 15, 255, random() % 64, random(), SCRATCH + random() % SCRATCH_SIZE};
    u64 value = values[random() % 9];
    switch (width) {
      case 1: *(volatile u8 *)at = value; break;
      case 2: *(volatile u16 *)at = value; break;
      case 4: *(volatile u32 *)at = value; break;
      default: *(volatile u64 *)at = value;
    }
    if (round % 8 == 0) out(0x6000 + random() % 0x80, value);
    /* Not those that end the machine: 0x64, 0xcf9. */
    if (round % 32 == 0) out(0x1000 + random() % 0x4000, value);
  }
  note("registers", 6000);
}

/* ---- attack: rings ---------------------------------------------------------------------------------------------------- */

static u64 bad_address(void) {
  u64 addresses[] = {random(), ~0ul, 0xbffff000ul + random() % 0x1000, 0xd0000000ul + random() % 0x14000, 1ul << (random() % 64),
                     SCRATCH + random() % SCRATCH_SIZE};
  return addresses[random() % 6];
}

/* Descriptors that make no sense, or too much: loops, tables of tables, lengths without end, odd flags. */
static void spoil(volatile struct ring *ring) {
  for (u32 at = 0; at < QUEUE_SIZE; at++) {
    volatile struct descriptor *d = &ring->descriptors[at];
    d->address = random() % 4 ? SCRATCH + (random() % SCRATCH_SIZE | 1) : bad_address() | 1;
    d->length = random() % 3 ? random() % 0x3000 : random();
    d->flags = random() % 8, d->next = random() % 3 ? random() % QUEUE_SIZE : random();
    ring->available.ring[at] = random() % 4 ? random() % QUEUE_SIZE : random();
  }
  ring->available.flags = random() % 2;
  ring->available.index = random() % 3 ? random() % (QUEUE_SIZE + 1) : random();
}

/* By the register of the standard, which wakes the device's thread, or by the port, where a vCPU may serve the device itself. */
static void notify(u32 slot, u32 queue) {
  if (random() % 2) out(0x6000 + 4 * slot, queue);
  else *reg(slot, NOTIFY) = queue;
}

static void spoil_device(u32 slot) {
  negotiate(slot, random() % 2 ? *reg(slot, 0x10) : 0);
  for (u32 queue = 0; queue < QUEUES; queue++) {
    volatile struct ring *ring = &ring_memory[slot][queue];
    memset((void *)ring, 0, sizeof *ring);
    spoil(ring);
    if (random() % 4)
      set_up_queue(slot, queue, (u64)ring->descriptors, (u64)&ring->available, (u64)&ring->used);
    else
      set_up_queue(slot, queue, bad_address() & ~15ul, bad_address() & ~1ul, bad_address() & ~3ul);
  }
  *reg(slot, STATUS) = 15;
  for (u32 queue = 0; queue < QUEUES + 1; queue++) notify(slot, queue);
  for (u32 spin = 0; spin < 20000; spin++) {
    pause();
    /* While the device looks. */
    if (spin % 5000 == 0) spoil(&ring_memory[slot][random() % QUEUES]);
  }
  *reg(slot, STATUS) = 0;
}

static void bad_rings(u32 rounds) {
  u32 devices = 0;
  for (u32 slot = 0; slot < MAX_SLOTS; slot++) {
    if (!present(slot)) continue;
    devices++;
    for (u32 round = 0; round < rounds; round++) spoil_device(slot);
  }
  note("devices", devices);
}

static void rings(void) { bad_rings(40); }

/* ---- attack: resets in a loop ----------------------------------------------------------------------------------------- */

static void resets(void) {
  u32 resets = 0;
  for (u32 slot = 0; slot < MAX_SLOTS; slot++) {
    if (!present(slot)) continue;
    for (u32 round = 0; round < 150; round++, resets++) {
      negotiate(slot, round % 2 ? *reg(slot, 0x10) & 0xffffff : 0);
      for (u32 queue = 0; queue < queues_of(*reg(slot, ID)); queue++) set_up_good_queue(slot, queue);
      /* The queue of every third is none, for the same fault again and again. */
      if (round % 3 == 0) { *reg(slot, READY) = 0; set_up_queue(slot, 0, ~15ul, ~15ul, ~15ul); }
      *reg(slot, STATUS) = 15;
      notify(slot, 0);
    }
    *reg(slot, STATUS) = 0;
  }
  note("resets", resets);
}

/* ---- vsock ------------------------------------------------------------------------------------------------------------ */

enum { REQUEST = 1, RESPONSE, RESET, SHUTDOWN, DATA, CREDIT_UPDATE, CREDIT_REQUEST };
enum { READY_PORT = 1023, RPC_PORT = 1024 };
#define ROOM 4096
struct packet { u64 from, to; u32 from_port, to_port, length; u16 kind, op; u32 flags, room, taken; u8 data[ROOM]; } __attribute__((packed));
#define HEADER 44
static struct packet received[QUEUE_SIZE], sent[QUEUE_SIZE];
static int vsock;

static void start_vsock(void) {
  vsock = find(VSOCK);
  start_device(vsock);
  for (u32 at = 0; at < QUEUE_SIZE; at++) {
    describe(vsock, 0, at, &received[at], sizeof received[at], WRITABLE, 0);
    offer(vsock, 0, at);
  }
  *reg(vsock, NOTIFY) = 0;
}

static void give_back(u32 at) { offer(vsock, 0, at); *reg(vsock, NOTIFY) = 0; }

/* Sends a packet that is in `sent[0]`, of so many bytes of data, and waits until the device has taken it. */
static int send_packet(u32 length, u64 patience) {
  describe(vsock, 1, 0, &sent[0], HEADER + length, 0, 0);
  offer(vsock, 1, 0);
  *reg(vsock, NOTIFY) = 1;
  return take_used(vsock, 1, patience);
}

static int send_op(u32 from_port, u32 to_port, u16 op, const void *data, u32 length, u32 taken) {
  struct packet packet = {3, 2, from_port, to_port, length, 1, op, op == SHUTDOWN ? 3 : 0, 1 << 20, taken, {}};
  memcpy(packet.data, data, length);
  memcpy(&sent[0], &packet, HEADER + length);
  return send_packet(length, PATIENCE);
}

/* Connections without end to a port that is open, of which none goes on to say hello, and packets of all kinds to all others,
 * with lengths and credit that lie. For long the guest takes no answers. */
static void storm(void) {
  u32 answers = 0, stuck = 0;
  start_vsock();
  for (u32 round = 0; round < 4000; round++) {
    u32 ports[] = {RPC_PORT, 0xc0000000u + random() % 8, random(), ~0u};
    struct packet *packet = &sent[0];
    random_bytes(packet, HEADER + 64);
    packet->from = 3, packet->to = 2, packet->kind = 1;
    if (round % 2) {
      packet->from_port = 10000 + round, packet->to_port = READY_PORT, packet->op = REQUEST, packet->length = 0;
    } else {
      packet->from_port = random() % 4 ? 7000 + round % 600 : random(), packet->to_port = ports[random() % 4];
      packet->op = random() % 8 ? 1 + random() % 7 : random();
      packet->length = random() % 4 ? random() % 64 : random();
      if (random() % 16 == 0) packet->from = random();
      if (random() % 16 == 0) packet->to = random();
      if (random() % 16 == 0) packet->kind = random();
    }
    int taken = send_packet(random() % 64, 50000) >= 0;
    stuck += !taken;
    if (taken && round % 800 < 700) continue;
    /* When the device takes no more before it is rid of its answers, it gets room for them. */
    for (int at; (at = take_used(vsock, 0, 1000)) >= 0; answers++) give_back(at);
    if (!taken && take_used(vsock, 1, PATIENCE) < 0) break;
  }
  note("stuck", stuck);
  note("answers", answers > 0);
  note("alive", *reg(vsock, STATUS) == 15);
}

/* ---- files ------------------------------------------------------------------------------------------------------------ */

enum { LOOKUP = 1, SETATTR = 4, SYMLINK = 6, MKNOD = 8, MKDIR = 9, UNLINK = 10, RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, WRITE = 16, INIT = 26,
       OPENDIR = 27, READDIR = 28, RELEASEDIR = 29, CREATE = 35, RENAME2 = 45 };
struct fuse_in { u32 length, opcode; u64 unique, node; u32 uid, gid, pid, padding; };
struct fuse_out { u32 length; int error; u64 unique; };
static u8 request[0x4000] ALIGNED(4096), reply[0x4000] ALIGNED(4096);
static int fs;
#define NO_ANSWER 1000

static void start_fs(void) {
  static const u32 init[] = {7, 41, 0, 0};
  fs = find(FS);
  start_device(fs);
  struct fuse_in *in = (void *)request;
  *in = (struct fuse_in){sizeof *in + sizeof init, INIT, 1, 0, 0, 0, 0, 0};
  memcpy(in + 1, init, sizeof init);
  describe(fs, 1, 0, request, in->length, NEXT, 1);
  describe(fs, 1, 1, reply, sizeof reply, WRITABLE, 0);
  offer(fs, 1, 0);
  notify(fs, 1);
  take_used(fs, 1, PATIENCE);
}

/* Sends `length` bytes of `request` as they are, with room for `room` bytes of an answer: what the answer's header says, or
 * NO_ANSWER. */
static int send_request(u32 length, u32 room) {
  if (*reg(fs, STATUS) & 64) start_fs();
  struct fuse_out *out = (void *)reply;
  *out = (struct fuse_out){0, NO_ANSWER, 0};
  describe(fs, 1, 0, request, length, NEXT, 1);
  describe(fs, 1, 1, reply, room, WRITABLE, 0);
  offer(fs, 1, 0);
  notify(fs, 1);
  return take_used(fs, 1, PATIENCE) < 0 ? NO_ANSWER : out->error;
}

static u8 *body(u32 opcode, u64 node) {
  struct fuse_in *in = (void *)request;
  memset(request, 0, 512);
  *in = (struct fuse_in){0, opcode, 7, node, 0, 0, 1, 0};
  return (u8 *)(in + 1);
}
static int ask(u32 length) {
  struct fuse_in *in = (void *)request;
  in->length = sizeof *in + length;
  return send_request(in->length, sizeof reply);
}

/* A request that consists of some bytes and a name of so many bytes, its end included. */
static int ask_named(u32 opcode, u64 node, const void *fixed, u32 fixed_length, const char *name, u32 length) {
  u8 *at = body(opcode, node);
  memcpy(at, fixed, fixed_length);
  memcpy(at + fixed_length, name, length);
  return ask(fixed_length + length);
}
static u32 length_of(const char *text) { u32 n = 0; while (text[n]) n++; return n + 1; }
static u64 lookup(u64 node, const char *name) {
  if (ask_named(LOOKUP, node, "", 0, name, length_of(name))) return 0;
  return *(u64 *)(reply + sizeof(struct fuse_out));
}

/* The shares: names in the root directory, and in those directories in it that have a colon in their names. */
static char names[16][64];
static u64 parents[16];
static u64 share(u32 at) { return lookup(parents[at], names[at]); }
static u32 list(u64 directory, u32 found) {
  *(u64 *)body(OPENDIR, directory) = 0;
  if (ask(8)) return found;
  u64 handle = *(u64 *)(reply + sizeof(struct fuse_out)), offset = 0;
  for (u32 call = 0; call < 16; call++) {
    u64 *in = (u64 *)body(READDIR, directory);
    in[0] = handle, in[1] = offset, *(u32 *)&in[2] = 4096;
    if (ask(40)) break;
    u32 length = ((struct fuse_out *)reply)->length, at = sizeof(struct fuse_out);
    if (at >= length) break;
    while (at + 24 <= length) {
      u64 *entry = (u64 *)(reply + at);
      u32 name = ((u32 *)entry)[4];
      offset = entry[1];
      if (found < 16 && name < 64 && reply[at + 24] != '.') {
        memcpy(names[found], reply + at + 24, name);
        names[found][name] = 0;
        parents[found++] = directory;
      }
      at += (24 + name + 7) & ~7u;
    }
  }
  return found;
}
static u32 shares(void) {
  u32 found = list(1, 0), left = 0;
  for (u32 at = 0, top = found; at < top; at++) {
    u32 colon = 0;
    while (names[at][colon] && names[at][colon] != ':') colon++;
    if (names[at][colon]) found = list(lookup(1, names[at]), found);
  }
  /* Without the directories themselves. */
  for (u32 at = 0; at < found; at++) {
    u32 colon = 0;
    while (names[at][colon] && names[at][colon] != ':') colon++;
    if (parents[at] == 1 && names[at][colon]) continue;
    memcpy(names[left], names[at], sizeof names[at]);
    parents[left++] = parents[at];
  }
  return left;
}

/* Names that lead elsewhere, in every request that takes one: how many of them the host took. */
static u32 bad_names(u64 directory, u64 file) {
  static const struct { const char *name; u32 length; } bad[] = {
    {"..", 3}, {".", 2}, {"", 1}, {"/", 2}, {"/etc/passwd", 12}, {"../../../../etc", 16}, {"a/b", 4}, {"a/../..", 8}, {"a", 1},
    {"..\0a", 5}, {"x/", 3}, {"\0", 2}, {"a\0b", 4}};
  u32 taken = 0;
  for (u32 at = 0; at < sizeof bad / sizeof *bad; at++) {
    const char *name = bad[at].name;
    u32 length = bad[at].length, old = length_of(name) == length;
    u32 node[4] = {0100644, 0, 0, 0}, create[4] = {02, 0100644, 0, 0};
    u64 dir[2] = {directory, 0}, link[1] = {file};
    char two[64];
    memcpy(two, "hostile", 8);
    memcpy(two + 8, name, length);
    taken += old && !ask_named(LOOKUP, directory, "", 0, name, length);
    taken += old && !ask_named(MKNOD, directory, node, 16, name, length);
    taken += old && !ask_named(MKDIR, directory, node, 8, name, length);
    taken += old && !ask_named(UNLINK, directory, "", 0, name, length);
    taken += old && !ask_named(RMDIR, directory, "", 0, name, length);
    taken += old && !ask_named(CREATE, directory, create, 16, name, length);
    taken += old && !ask_named(LINK, directory, link, 8, name, length);
    taken += old && !ask_named(RENAME, directory, dir, 8, two, 8 + length);
    taken += old && !ask_named(RENAME2, directory, dir, 16, two, 8 + length);
    /* Ends within the name, and what follows an end: refused or cut, not for us to say. Nothing must break. */
    if (!old) for (u32 opcode = 1; opcode < 64; opcode++) ask_named(opcode, directory, create, 16, name, length);
  }
  return taken;
}

/* Links to the host's files, which the host itself must not follow. */
static u32 followed(u64 directory) {
  static const char *targets[] = {"/etc", "..", "/proc/self/fd", "../../../../../../.."};
  u32 followed = 0;
  for (u32 at = 0; at < 4; at++) {
    char two[64] = {'l', '0' + at, 0};
    memcpy(two + 3, targets[at], length_of(targets[at]));
    ask_named(SYMLINK, directory, "", 0, two, 3 + length_of(targets[at]));
    two[2] = 0;
    u64 link = lookup(directory, two);
    if (!link) continue;
    followed += lookup(link, "passwd") != 0 || lookup(link, "etc") != 0;
    *(u64 *)body(OPENDIR, link) = 0, followed += !ask(8);
    *(u64 *)body(OPEN, link) = 0, followed += !ask(8);
    ask_named(UNLINK, directory, "", 0, two, 3);
  }
  return followed;
}

/* Every number of a request, with bodies that are cut, too long, and random, nodes and handles that are nobody's, and headers
 * that lie about lengths; never what would remove or rename things on the host by luck. */
static void garbage_requests(u32 rounds) {
  struct fuse_in *in = (void *)request;
  for (u32 opcode = 0; opcode < 64; opcode++) {
    if (opcode == UNLINK || opcode == RMDIR || opcode == RENAME || opcode == RENAME2) continue;
    for (u32 round = 0; round < rounds; round++) {
      u32 length = sizeof *in + (round % 3 ? random() % 128 : random() % 0x3000);
      random_bytes(request, length);
      u64 nodes[] = {0, 1, 2, 3, random() % 64, random(), ~0ul};
      *in = (struct fuse_in){length, round == 7 ? random() : opcode, random(), nodes[random() % 7], 0, 0, 1, 0};
      if (round % 4 == 1) in->length = random();
      if (round % 4 == 2) memset(in + 1, 0, 64);
      send_request(round % 5 == 4 ? random() % sizeof *in : length, round % 6 == 5 ? random() % 32 : sizeof reply);
    }
  }
}

static void files(void) {
  start_fs();
  u32 found = shares();
  u64 root = found ? share(0) : 0;
  note("shares", found);
  static const u32 create[4] = {02, 0100644, 0, 0};
  ask_named(CREATE, root, create, 16, "hostile", 8);
  u64 file = lookup(root, "hostile");
  note("file", file != 0);
  note("bad names", bad_names(root, file) + bad_names(1, file));
  note("above", lookup(1, "..") != 0);
  note("followed", followed(root));
  garbage_requests(24);
  /* The last of these may have been one that stops the device. */
  if (*reg(fs, STATUS) & 64) start_fs();
  note("alive", *reg(fs, STATUS) == 15 && share(0) != 0);
}

/* What no process of the container could do to its volumes. */
static void rights(void) {
  static const u32 create[4] = {02, 0104755, 0, 0}, node[4] = {060600, 8 << 8, 0, 0};
  start_fs();
  for (u32 found = shares(), at = 0; at < found; at++) {
    u64 directory = share(at);
    ask_named(CREATE, directory, create, 16, "setuid", 7);
    note("node", ask_named(MKNOD, directory, node, 16, "node", 5));
  }
}

/* Does with every share of the VM what would be of use on the host: a program that is setuid, a device node, another name, mode,
 * owner and content for the file `given`, and the end of the file `removed`. */
static void grab(void) {
  static const u32 create[4] = {02, 0104755, 0, 0}, node[4] = {060600, 8 << 8, 0, 0};
  start_fs();
  for (u32 found = shares(), at = 0; at < found; at++) {
    u64 directory = share(at), file;
    ask_named(CREATE, directory, create, 16, "setuid", 7);
    ask_named(MKNOD, directory, node, 16, "node", 5);
    ask_named(LINK, directory, (u64[]){lookup(directory, "given")}, 8, "linked", 7);
    ask_named(UNLINK, directory, "", 0, "removed", 8);
    if (!(file = lookup(directory, "given"))) continue;
    /* SETATTR of the owner, then of mode and size. */
    for (u32 valid = 2; valid; valid = valid == 2 ? 9 : 0) {
      u32 *in = (u32 *)body(SETATTR, file);
      in[0] = valid, in[17] = 0100777, in[19] = 1000;
      ask(88);
    }
    *(u64 *)body(OPEN, file) = 2; /* for reading and writing */
    if (ask(8)) continue;
    u64 handle = *(u64 *)(reply + sizeof(struct fuse_out));
    u64 *write = (u64 *)body(WRITE, file);
    write[0] = handle, write[1] = 0, *(u32 *)&write[2] = 7;
    memcpy((u8 *)write + 40, "grabbed", 7);
    ask(47);
  }
}

/* ---- an agent that lies ----------------------------------------------------------------------------------------------- */

/* A call of ttrpc's whose header and beginning is here; the rest is still to come. */
static struct { u8 header[10]; u8 head[160]; u32 have, left, head_length; } call;
static u32 calls, taken_bytes;

static u32 big(const u8 *at) { return at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]; }
static int mentions(const char *word) {
  u32 length = length_of(word) - 1;
  for (u32 at = 0; at + length <= call.head_length; at++) {
    u32 same = 0;
    while (same < length && call.head[at + same] == (u8)word[same]) same++;
    if (same == length) return 1;
  }
  return 0;
}

enum { YES, GARBAGE, HUGE };
static int lie;

static void answer(u32 port) {
  u8 bytes[512];
  calls++;
  if (lie == GARBAGE) {
    random_bytes(bytes, sizeof bytes);
    send_op(RPC_PORT, port, DATA, bytes, sizeof bytes, taken_bytes);
    return;
  }
  memcpy(bytes, call.header, 10);
  bytes[8] = 2, bytes[9] = 0;
  memset(bytes, lie == HUGE ? 0xff : 0, 4);
  /* What waits for an end never hears of one; all else is done. */
  if (lie == YES && mentions("Wait")) return;
  send_op(RPC_PORT, port, DATA, bytes, lie == HUGE ? 512 : 10, taken_bytes);
}

static void hear(const u8 *data, u32 length, u32 port) {
  for (taken_bytes += length; length; length--, data++) {
    if (call.have < 10) {
      call.header[call.have++] = *data;
      if (call.have < 10) continue;
      call.left = big(call.header), call.head_length = 0;
    } else {
      if (call.head_length < sizeof call.head) call.head[call.head_length++] = *data;
      call.left--;
    }
    if (!call.left) { call.have = 0; answer(port); }
  }
}

static void serve_packet(const struct packet *packet) {
  switch (packet->op) {
    case REQUEST: send_op(packet->to_port, packet->from_port, RESPONSE, "", 0, 0); break;
    case DATA:
      if (packet->to_port == RPC_PORT) hear(packet->data, packet->length % (ROOM + 1), packet->from_port);
      send_op(packet->to_port, packet->from_port, CREDIT_UPDATE, "", 0, taken_bytes);
      break;
    case SHUTDOWN: send_op(packet->to_port, packet->from_port, RESET, "", 0, 0); break;
  }
}

static void say_hello(void) {
  static const struct { char magic[4]; u32 version, begin, ready; } hello = {{'r', 'v', 'm', '1'}, AGENT_VERSION, 1, 2};
  send_op(5000, READY_PORT, REQUEST, "", 0, 0);
  for (int at; (at = take_used(vsock, 0, PATIENCE)) >= 0;) {
    int accepted = received[at].op == RESPONSE;
    give_back(at);
    if (accepted) break;
  }
  send_op(5000, READY_PORT, DATA, &hello, sizeof hello, 0);
}

/* Serves the monitor's calls; while none comes, does something else. */
static void be_agent(int how, void (*meanwhile)(void)) {
  lie = how;
  start_vsock();
  say_hello();
  for (u32 quiet = 0;;) {
    int at = take_used(vsock, 0, 2000);
    if (at < 0) {
      /* Until the container is there. */
      if (++quiet > 50 && calls > 1 && meanwhile) meanwhile();
      continue;
    }
    quiet = 0;
    serve_packet(&received[at]);
    give_back(at);
  }
}

/* Goes on for ever: bad rings everywhere but in the vsock device, files, and connections to ports that were open once. */
static void all_at_once(void) {
  for (u32 slot = 0; slot < MAX_SLOTS; slot++)
    if (present(slot) && slot != (u32)vsock && *reg(slot, ID) != FS) spoil_device(slot);
  start_fs();
  garbage_requests(1);
  for (u32 port = 0; port < 64; port++) send_op(9000 + random() % 4096, READY_PORT, REQUEST, "", 0, 0);
}

static void says_yes(void) { be_agent(YES, all_at_once); }
static void grabs(void) { be_agent(YES, grab); }
static void says_garbage(void) { be_agent(GARBAGE, 0); }
static void says_too_much(void) { be_agent(HUGE, 0); }

/* ---- all of it -------------------------------------------------------------------------------------------------------- */

static u64 pml4[512] ALIGNED(4096), pdpt[512] ALIGNED(4096), pd[4][512] ALIGNED(4096);

void begin(void) {
  /* All of the first 4 GiB, one to one. */
  for (u64 at = 0; at < 2048; at++) pd[at / 512][at % 512] = at << 21 | 0x83;
  for (u64 at = 0; at < 4; at++) pdpt[at] = (u64)pd[at] | 3;
  pml4[0] = (u64)pdpt | 3;
  __asm__ volatile("mov %0, %%cr3" ::"r"(pml4) : "memory");
  say("====1.000000-D\nattack");
  MODE();
  say(" over\n");
  end();
}
