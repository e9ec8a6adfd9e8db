/* What only C can say for us: a structure whose length differs from release to release, and a va_list. */

#ifndef UDIRECT_SPDK_SHIM_H
#define UDIRECT_SPDK_SHIM_H

#include <stdbool.h>

/* How SPDK's environment is to start. */
struct udirect_env {
	/* "[3]": the one core that DPDK is to know of. */
	const char *cores;
	/* Where hugepages are mounted; NULL where no file is to be made. */
	const char *huge_directory;
	int megabytes;
	bool no_huge;
	bool no_pci;
	/* More arguments for DPDK's EAL. */
	char *arguments;
};

/* Starts the environment. Returns 0 or a negated errno. */
int udirect_env_start(const struct udirect_env *wanted);

/* One message, ended by 0, from any thread. */
typedef void (*udirect_log_fn)(int level, const char *text);

/* Sends SPDK's messages to `log` instead of standard error. */
void udirect_log_to(udirect_log_fn log);

#endif
