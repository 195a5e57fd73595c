/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Input to bindgen. It does not evaluate macros that contain a cast or a sizeof,
 * so those are assigned to constants, which it does evaluate.
 */
#include <linux/ummunotify.h>

const __u32 RUST_CONST_UMMUNOTIFY_EXCHANGE_FEATURES = UMMUNOTIFY_EXCHANGE_FEATURES;
const __u32 RUST_CONST_UMMUNOTIFY_REGISTER_REGION = UMMUNOTIFY_REGISTER_REGION;
const __u32 RUST_CONST_UMMUNOTIFY_UNREGISTER_REGION = UMMUNOTIFY_UNREGISTER_REGION;
const __u32 RUST_CONST_UMMUNOTIFY_STAMP = UMMUNOTIFY_STAMP;
