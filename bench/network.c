/*
 * What bench/network.py times: a server, which runs in the container or machine, and clients, which run on the host.
 *
 *   network serve PORT            for ever; as /init of a machine it sets eth0 up as 10.7.0.4/24 first
 *   network rr ADDRESS PORT N     N times one byte there and one back
 *   network connect ADDRESS PORT N   N connections, each with one byte there and back
 *   network send ADDRESS PORT MIB    so much to the server
 *   network receive ADDRESS PORT MIB so much from it
 *
 * Clients print seconds.
 */
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 18];

static void die(const char *what) { perror(what); exit(1); }

static void move(int fd, long bytes, int out)
{
	while (bytes > 0) {
		size_t part = bytes < (long)sizeof buffer ? bytes : (long)sizeof buffer;
		ssize_t n = out ? write(fd, buffer, part) : read(fd, buffer, part);
		if (n <= 0) die(out ? "write" : "read");
		bytes -= n;
	}
}

/* The first byte says what the client wants, eight more how much. */
static void answer(int fd)
{
	struct { char what; long count; } __attribute__((packed)) wish;
	int one = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (recv(fd, &wish, sizeof wish, MSG_WAITALL) != sizeof wish) exit(1);
	if (wish.what == 'e')
		while (wish.count--) { move(fd, 1, 0); move(fd, 1, 1); }
	if (wish.what == 's') { move(fd, wish.count, 0); move(fd, 1, 1); }
	if (wish.what == 'r') move(fd, wish.count, 1);
	exit(0);
}

static void set_up(void)
{
	struct ifreq request = { .ifr_name = "eth0" };
	struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	address->sin_family = AF_INET;
	inet_pton(AF_INET, "10.7.0.4", &address->sin_addr);
	if (ioctl(fd, SIOCSIFADDR, &request)) die("address");
	inet_pton(AF_INET, "255.255.255.0", &address->sin_addr);
	if (ioctl(fd, SIOCSIFNETMASK, &request)) die("mask");
	if (ioctl(fd, SIOCGIFFLAGS, &request)) die("flags");
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request)) die("up");
}

static void serve(int port)
{
	signal(SIGCHLD, SIG_IGN);
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (void *)&here, sizeof here) || listen(listener, 128)) die("listen");
	for (;;) {
		int fd = accept(listener, 0, 0);
		if (fd < 0) die("accept");
		/* One client at a time; connections are served here, so that no fork is timed. */
		struct { char what; long count; } __attribute__((packed)) wish;
		if (recv(fd, &wish, sizeof wish, MSG_PEEK | MSG_WAITALL) == sizeof wish && wish.what == 'c') {
			recv(fd, &wish, sizeof wish, MSG_WAITALL);
			move(fd, 1, 1);
		} else if (fork() == 0) {
			answer(fd);
		}
		close(fd);
	}
}

static int dial(char **argv)
{
	struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[3])) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	inet_pton(AF_INET, argv[2], &there.sin_addr);
	if (connect(fd, (void *)&there, sizeof there)) die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static void wish(int fd, char what, long count)
{
	struct { char what; long count; } __attribute__((packed)) wish = { what, count };
	if (write(fd, &wish, sizeof wish) != sizeof wish) die("write");
}

int main(int argc, char **argv)
{
	if (getpid() == 1 && !strcmp(argv[0], "/init")) { set_up(); serve(5000); }
	if (argc == 3 && !strcmp(argv[1], "serve")) serve(atoi(argv[2]));
	if (argc != 5) { fprintf(stderr, "usage: see the top of network.c\n"); return 2; }
	long count = atol(argv[4]);
	struct timespec begin, end;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	int fd = strcmp(argv[1], "connect") ? dial(argv) : -1;
	if (!strcmp(argv[1], "rr")) {
		wish(fd, 'e', count);
		while (count--) { move(fd, 1, 1); move(fd, 1, 0); }
	} else if (!strcmp(argv[1], "connect")) {
		while (count--) { fd = dial(argv); wish(fd, 'c', 0); move(fd, 1, 0); close(fd); }
	} else if (!strcmp(argv[1], "send")) {
		wish(fd, 's', count << 20); move(fd, count << 20, 1); move(fd, 1, 0);
	} else {
		wish(fd, 'r', count << 20); move(fd, count << 20, 0);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%.6f\n", end.tv_sec - begin.tv_sec + (end.tv_nsec - begin.tv_nsec) / 1e9);
	return 0;
}
