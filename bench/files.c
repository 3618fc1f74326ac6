/* What containers do with files, timed: files DIR PHASE... prints "PHASE SECONDS OPERATIONS" for each.
 *
 * With the name "init" it is the first process of a machine whose directory DIR is a virtiofs of the tag "files": the phases
 * are then "phases=PHASE,..." on the kernel's command line, and it ends the machine.
 *
 * DIR holds, made before: tree/dN/fN (DIRS x FILES files of SIZE bytes) and big (BIG bytes).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DIRS = 50, FILES = 100, SIZE = 2048, ALL = DIRS * FILES, BLOCK = 1 << 20, BIG = 256 << 20, PAGE = 4096, READS = 5000 };

static char block[BLOCK];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* What tar does with an archive: a directory, files written, their modes and times. */
static long untar(void)
{
	struct timespec times[2] = { { 1, 0 }, { 1, 0 } };
	char name[64];

	if (mkdir("new", 0755))
		die("mkdir new");
	for (int d = 0; d < DIRS; d++) {
		sprintf(name, "new/d%d", d);
		if (mkdir(name, 0755))
			die(name);
		for (int f = 0; f < FILES; f++) {
			sprintf(name, "new/d%d/f%d", d, f);
			int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
			if (fd < 0 || write(fd, block, SIZE) != SIZE || futimens(fd, times) || fchmod(fd, 0644) || close(fd))
				die(name);
		}
	}
	return ALL;
}

static long walk(const char *path, int unlinks)
{
	char name[512];
	struct stat st;
	long seen = 0;
	DIR *dir = opendir(path);

	if (!dir)
		die(path);
	for (struct dirent *entry; (entry = readdir(dir));) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
		if (lstat(name, &st))
			die(name);
		if (S_ISDIR(st.st_mode))
			seen += walk(name, unlinks);
		else
			seen++;
		if (unlinks && (S_ISDIR(st.st_mode) ? rmdir(name) : unlink(name)))
			die(name);
	}
	closedir(dir);
	return seen;
}

static long find(void) { return walk("tree", 0); }

static long rm(void)
{
	long seen = walk("new", 1);

	if (rmdir("new"))
		die("rmdir new");
	return seen;
}

static long stats(void)
{
	char name[64];
	struct stat st;

	for (int n = 0; n < ALL; n++) {
		sprintf(name, "tree/d%d/f%d", n % DIRS, n / DIRS);
		if (lstat(name, &st))
			die(name);
	}
	return ALL;
}

static long readall(void)
{
	char name[64];

	for (int n = 0; n < ALL; n++) {
		sprintf(name, "tree/d%d/f%d", n / FILES, n % FILES);
		int fd = open(name, O_RDONLY);
		if (fd < 0 || read(fd, block, BLOCK) != SIZE || close(fd))
			die(name);
	}
	return ALL;
}

static long seqwrite(void)
{
	int fd = open("written", O_WRONLY | O_CREAT | O_TRUNC, 0644);

	for (int n = 0; n < BIG / BLOCK; n++)
		if (write(fd, block, BLOCK) != BLOCK)
			die("write");
	if (fsync(fd) || close(fd) || unlink("written"))
		die("written");
	return BIG / BLOCK;
}

static long seqread(void)
{
	int fd = open("big", O_RDONLY);

	for (int n = 0; n < BIG / BLOCK; n++)
		if (read(fd, block, BLOCK) != BLOCK)
			die("read");
	close(fd);
	return BIG / BLOCK;
}

/* Pages that nobody has read yet, one at a time. */
static long randread(void)
{
	int fd = open("random", O_RDONLY);
	unsigned long page = 1;

	posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	for (int n = 0; n < READS; n++) {
		/* Visits each of 2^16 once: a full period. */
		page = (page * 5 + 12345) % (BIG / PAGE);
		if (pread(fd, block, PAGE, (off_t)page * PAGE) != PAGE)
			die("pread");
	}
	close(fd);
	return READS;
}

static long none(void) { return 1; }

static const struct {
	const char *name;
	long (*run)(void);
} phases[] = {
	{ "find", find }, { "stat", stats }, { "readall", readall }, { "untar", untar }, { "rm", rm }, { "seqwrite", seqwrite },
	{ "seqread", seqread }, { "randread", randread }, { "none", none },
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void time_phase(const char *name)
{
	for (unsigned p = 0; p < sizeof phases / sizeof *phases; p++)
		if (!strcmp(name, phases[p].name)) {
			double begin = now();
			long operations = phases[p].run();
			printf("%s %.6f %ld\n", name, now() - begin, operations);
			fflush(stdout);
		}
}

/* The kernel gives words that it does not know to the first process, as its environment. */
static void be_init(void)
{
	char *words = getenv("phases");

	mkdir("/files", 0755);
	if (mount("files", "/files", "virtiofs", 0, NULL) || chdir("/files"))
		die("mount files");
	for (char *word = strtok(words ? words : "", ","); word; word = strtok(NULL, ","))
		time_phase(word);
	reboot(RB_AUTOBOOT);
}

int main(int count, char **words)
{
	memset(block, 'x', sizeof block);
	if (getpid() == 1 && !strcmp(words[0], "/init"))
		be_init();
	if (count < 2 || chdir(words[1]))
		die("chdir");
	for (int word = 2; word < count; word++)
		time_phase(words[word]);
	return 0;
}
