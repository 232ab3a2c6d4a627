/*
 * Preloaded into keepalived, it makes a kernel without IPVS look as if it had
 * it, and took everything.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

/* From IP_VS_BASE_CTL on (linux/ip_vs.h). */
static int ipvs(int level, int name)
{
	return level == IPPROTO_IP && name >= 64 + 1024 + 64 && name < 64 + 1024 + 128;
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	int (*next)(int, int, int, const void *, socklen_t);

	if (ipvs(level, name))
		return 0;
	*(void **)&next = dlsym(RTLD_NEXT, "setsockopt");
	return next(fd, level, name, value, len);
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	int (*next)(int, int, int, void *, socklen_t *);

	if (ipvs(level, name)) {
		memset(value, 0, *len);
		return 0;
	}
	*(void **)&next = dlsym(RTLD_NEXT, "getsockopt");
	return next(fd, level, name, value, len);
}
