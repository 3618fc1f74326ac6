/* Operations for bench/counts.py.
 *
 *   counts                      first process of a container: reads "OPERATION N" lines, performs each, answers "done N"
 *   counts repeat N CMD ARG...  on the host: runs a command N times, one after the other; each has to succeed
 *   counts rr ADDRESS N         on the host: sends one byte to the server of the container and reads one back, N times
 *
 * Operations of the container, on files below its root: getxattr (of "tree/0"), read (files "tree/1" and following, each one once),
 * create (files "new/1" and following), unlink (these again, in order), serve (TCP on PORT, until the container ends).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { PORT = 5000, SIZE = 2048 };

static char block[SIZE];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* An attribute that no file has, and tmpfs knows not at all: the guest's kernel asks the host each time. */
static void get_attribute(void)
{
	if (getxattr("/tree/0", "user.counts", block, sizeof block) != -1 || (errno != ENODATA && errno != EOPNOTSUPP))
		die("getxattr of /tree/0");
}

static void read_file(const char *directory, long number)
{
	char name[64];

	snprintf(name, sizeof name, "/%s/%ld", directory, number);
	int fd = open(name, O_RDONLY);
	if (fd < 0 || read(fd, block, sizeof block) != SIZE || close(fd))
		die(name);
}

/* The calls of tar for one file of an archive. */
static void create_file(long number)
{
	struct timespec times[2] = { { 1, 0 }, { 1, 0 } };
	char name[64];

	snprintf(name, sizeof name, "/new/%ld", number);
	int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || write(fd, block, sizeof block) != SIZE || fchmod(fd, 0644) || futimens(fd, times) || close(fd))
		die(name);
}

static void unlink_file(long number)
{
	char name[64];

	snprintf(name, sizeof name, "/new/%ld", number);
	if (unlink(name))
		die(name);
}

static void no_delay(int fd)
{
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		die("TCP_NODELAY");
}

/* Answers each byte with one; connections one at a time. */
static void serve(void)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char byte;

	if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 8))
		die("listen");
	pid_t child = fork();
	if (child < 0)
		die("fork");
	while (child == 0) {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			die("accept");
		no_delay(fd);
		while (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1)
			;
		close(fd);
	}
	close(listener);
}

static void perform(const char *operation, long count)
{
	static long read_so_far, created, unlinked;

	if (!strcmp(operation, "serve"))
		serve();
	for (long n = 0; n < count; n++) {
		if (!strcmp(operation, "getxattr"))
			get_attribute();
		else if (!strcmp(operation, "read"))
			read_file("tree", ++read_so_far);
		else if (!strcmp(operation, "create"))
			create_file(++created);
		else if (!strcmp(operation, "unlink"))
			unlink_file(++unlinked);
		else
			exit(2);
	}
}

static int be_container(void)
{
	char operation[32];
	long count;

	while (scanf("%31s %ld", operation, &count) == 2) {
		perform(operation, count);
		printf("done %ld\n", count);
		fflush(stdout);
	}
	return 0;
}

static int repeat(long count, char **command)
{
	while (count-- > 0) {
		int status;
		pid_t child = vfork();
		if (child == 0) {
			execv(command[0], command);
			_exit(127);
		}
		if (child < 0 || waitpid(child, &status, 0) != child)
			die(command[0]);
		if (status) {
			fprintf(stderr, "%s: wait status %#x\n", command[0], status);
			return 1;
		}
	}
	return 0;
}

static int ask(const char *address, long count)
{
	struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char byte = 'x';

	if (inet_pton(AF_INET, address, &there.sin_addr) != 1 || connect(fd, (struct sockaddr *)&there, sizeof there))
		die(address);
	no_delay(fd);
	while (count-- > 0)
		if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
			die("a byte there and back");
	return 0;
}

int main(int count, char **words)
{
	memset(block, 'x', sizeof block);
	if (count == 1)
		return be_container();
	if (count >= 4 && !strcmp(words[1], "repeat"))
		return repeat(atol(words[2]), words + 3);
	if (count == 4 && !strcmp(words[1], "rr"))
		return ask(words[2], atol(words[3]));
	fprintf(stderr, "usage: see the top of counts.c\n");
	return 2;
}
