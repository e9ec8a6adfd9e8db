#include "wrapper.h"

/* Longer messages are cut. */
#define LINE_BYTES 1024

static udirect_log_fn g_log;

int
udirect_env_start(const struct udirect_env *wanted)
{
	struct spdk_env_opts opts;

	memset(&opts, 0, sizeof(opts));
	/* Before the call, which fills in no more than this. */
	opts.opts_size = sizeof(opts);
	spdk_env_opts_init(&opts);
	opts.name = "udirect";
	opts.core_mask = wanted->cores;
	opts.mem_size = wanted->megabytes;
	opts.no_huge = wanted->no_huge;
	opts.no_pci = wanted->no_pci;
	opts.hugedir = wanted->huge_directory;
	/* A vfio-user target is given memory by file, and takes few of them. It cannot be had without hugepages. */
	opts.hugepage_single_segments = !wanted->no_huge;
	/* Said by SPDK itself without hugepages, and DPDK takes no argument twice. */
	opts.iova_mode = wanted->no_huge ? NULL : "va";
	opts.env_context = wanted->arguments;
	return spdk_env_init(&opts);
}

static void
log_line(int level, const char *file, const int line, const char *func, const char *format, va_list args)
{
	char text[LINE_BYTES];

	(void)file;
	(void)line;
	(void)func;
	vsnprintf(text, sizeof(text), format, args);
	g_log(level, text);
}

void
udirect_log_to(udirect_log_fn log)
{
	g_log = log;
	spdk_log_open(log_line);
}
