/* What the feature `spdk` uses of SPDK: read by bindgen, from the headers of the installation that is found. */

#include <spdk/stdinc.h>

#include <spdk/bdev.h>
#include <spdk/env.h>
#include <spdk/init.h>
#include <spdk/log.h>
#include <spdk/rpc.h>
#include <spdk/thread.h>
#include <spdk/version.h>

#include "shim.h"
