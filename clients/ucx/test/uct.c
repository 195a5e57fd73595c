// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

#define _GNU_SOURCE
#include "uct.h"
#include "harness.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <ucs/async/async_fwd.h>
#include <uct/api/uct.h>

#define FUNCTIONS(each) \
	each(ucs_async_context_create) each(ucs_async_context_destroy) each(uct_component_query) \
	each(uct_config_release) each(uct_ep_connect_to_ep) each(uct_ep_create) each(uct_ep_destroy) \
	each(uct_ep_get_address) each(uct_iface_close) each(uct_iface_get_device_address) \
	each(uct_iface_open) each(uct_iface_query) each(uct_md_close) each(uct_md_config_read) \
	each(uct_md_iface_config_read) each(uct_md_mem_dereg) each(uct_md_mem_reg) \
	each(uct_md_mkey_pack) each(uct_md_open) each(uct_md_query) each(uct_query_components) \
	each(uct_release_component_list) each(uct_rkey_release) each(uct_rkey_unpack) \
	each(uct_worker_create) each(uct_worker_destroy)
#define POINTER(function) __typeof__(function) *function;
#define FIND(function) \
	uct.function = dlsym(library, #function); \
	check(uct.function);

static struct { FUNCTIONS(POINTER) } uct;

struct loop {
	ucs_async_context_t *async;
	uct_worker_h worker;
	uct_component_h component;
	uct_md_h domain;
	uct_md_attr_t attributes;
	uct_iface_h interface;
	uct_ep_h ends[2];
};

/* The adapter is that of scripts/internal/soft-roce. */
static const char adapter[] = "rxe0", port[] = "rxe0:1", transport[] = "rc_verbs";

static bool open_domain(struct loop *loop, uct_component_h component)
{
	uct_component_attr_t attributes = { .field_mask = UCT_COMPONENT_ATTR_FIELD_MD_RESOURCE_COUNT };
	uct_md_config_t *config;
	bool found = false;

	check(uct.uct_component_query(component, &attributes) == UCS_OK);
	attributes.field_mask = UCT_COMPONENT_ATTR_FIELD_MD_RESOURCES;
	attributes.md_resources = calloc(attributes.md_resource_count + 1, sizeof(*attributes.md_resources));
	check(attributes.md_resources);
	check(uct.uct_component_query(component, &attributes) == UCS_OK);
	for (unsigned int i = 0; i < attributes.md_resource_count; i++)
		found |= !strcmp(attributes.md_resources[i].md_name, adapter);
	free(attributes.md_resources);
	if (!found)
		return false;
	loop->component = component;
	check(uct.uct_md_config_read(component, NULL, NULL, &config) == UCS_OK);
	check(uct.uct_md_open(component, adapter, config, &loop->domain) == UCS_OK);
	uct.uct_config_release(config);
	return uct.uct_md_query(loop->domain, &loop->attributes) == UCS_OK;
}

static void open_interface(struct loop *loop)
{
	uct_iface_params_t params = {
		.field_mask = UCT_IFACE_PARAM_FIELD_OPEN_MODE | UCT_IFACE_PARAM_FIELD_DEVICE,
		.open_mode = UCT_IFACE_OPEN_MODE_DEVICE,
		.mode.device = { transport, port },
	};
	uct_iface_config_t *config;

	check(uct.uct_md_iface_config_read(loop->domain, transport, NULL, NULL, &config) == UCS_OK);
	check(uct.uct_iface_open(loop->domain, loop->worker, &params, config, &loop->interface) == UCS_OK);
	uct.uct_config_release(config);
	uct_iface_progress_enable(loop->interface, UCT_PROGRESS_SEND | UCT_PROGRESS_RECV);
}

static void connect_ends(struct loop *loop)
{
	uct_ep_params_t params = { .field_mask = UCT_EP_PARAM_FIELD_IFACE, .iface = loop->interface };
	uct_device_addr_t *device;
	uct_iface_attr_t attributes;
	uct_ep_addr_t *ends[2];

	check(uct.uct_iface_query(loop->interface, &attributes) == UCS_OK);
	device = malloc(attributes.device_addr_len);
	check(uct.uct_iface_get_device_address(loop->interface, device) == UCS_OK);
	for (int i = 0; i < 2; i++) {
		ends[i] = malloc(attributes.ep_addr_len);
		check(uct.uct_ep_create(&params, &loop->ends[i]) == UCS_OK);
		check(uct.uct_ep_get_address(loop->ends[i], ends[i]) == UCS_OK);
	}
	for (int i = 0; i < 2; i++)
		check(uct.uct_ep_connect_to_ep(loop->ends[i], device, ends[!i]) == UCS_OK);
	free(ends[0]);
	free(ends[1]);
	free(device);
}

struct loop *open_loop(void *library)
{
	struct loop *loop = calloc(1, sizeof(*loop));
	uct_component_h *components;
	unsigned int count, i = 0;

	FUNCTIONS(FIND)
	check(loop);
	check(uct.ucs_async_context_create(UCS_ASYNC_MODE_THREAD_SPINLOCK, &loop->async) == UCS_OK);
	check(uct.uct_worker_create(loop->async, UCS_THREAD_MODE_SINGLE, &loop->worker) == UCS_OK);
	check(uct.uct_query_components(&components, &count) == UCS_OK);
	while (i < count && !open_domain(loop, components[i]))
		i++;
	check(i < count);
	uct.uct_release_component_list(components);
	open_interface(loop);
	connect_ends(loop);
	return loop;
}

/* UCT has counted down already. */
static void completed(uct_completion_t *completion)
{
	(void)completion;
}

void get(struct loop *loop, const char *from, char *to, size_t length)
{
	uct_completion_t completion = { .func = completed, .count = 1, .status = UCS_OK };
	uct_iov_t into = { .buffer = to, .length = length, .count = 1 };
	char packed[loop->attributes.rkey_packed_size];
	uct_mem_h source, target;
	uct_rkey_bundle_t key;
	ucs_status_t status;

	check(uct.uct_md_mem_reg(loop->domain, (void *)from, length, UCT_MD_MEM_ACCESS_RMA, &source) == UCS_OK);
	check(uct.uct_md_mem_reg(loop->domain, to, length, UCT_MD_MEM_ACCESS_RMA, &target) == UCS_OK);
	check(uct.uct_md_mkey_pack(loop->domain, source, packed) == UCS_OK);
	check(uct.uct_rkey_unpack(loop->component, packed, &key) == UCS_OK);
	into.memh = target;
	status = uct_ep_get_zcopy(loop->ends[0], &into, 1, (uintptr_t)from, key.rkey, &completion);
	check(status == UCS_INPROGRESS || status == UCS_OK);
	while (status == UCS_INPROGRESS && completion.count > 0)
		uct_worker_progress(loop->worker);
	check(completion.status == UCS_OK);
	uct.uct_rkey_release(loop->component, &key);
	check(uct.uct_md_mem_dereg(loop->domain, source) == UCS_OK);
	check(uct.uct_md_mem_dereg(loop->domain, target) == UCS_OK);
}

void close_loop(struct loop *loop)
{
	uct.uct_ep_destroy(loop->ends[0]);
	uct.uct_ep_destroy(loop->ends[1]);
	uct.uct_iface_close(loop->interface);
	uct.uct_md_close(loop->domain);
	uct.uct_worker_destroy(loop->worker);
	uct.ucs_async_context_destroy(loop->async);
	free(loop);
}
