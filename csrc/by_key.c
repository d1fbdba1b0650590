/* role: none
 * A batch grouped by key.
 */
#include "interpreter.h"

#include <stdlib.h>

#include "keyed.h"

typedef struct {
    uint64_t hash;
    uint32_t meta;
    const uint8_t *bytes;
    PyObject *payloads; /* borrowed from the tuple in the list of groups */
} Group;

typedef struct {
    Group *groups;
    uint32_t *table, count, mask; /* table: number of a group + 1; 0: free */
} Groups;

static Group *find_group(Groups *g, const sm_index *entry, const uint8_t *bytes, int *is_new)
{
    uint32_t meta = entry->meta & ~SM_META_MISSING, length = SM_META_LENGTH(meta);
    uint64_t mixed = entry->key * UINT64_C(0x9E3779B97F4A7C15);
    for (uint32_t at = (uint32_t)(mixed >> 32) & g->mask;; at = (at + 1) & g->mask) {
        if (!g->table[at]) {
            g->table[at] = ++g->count;
            Group *group = &g->groups[g->count - 1];
            *group = (Group){entry->key, meta, bytes, NULL};
            *is_new = 1;
            return group;
        }
        Group *group = &g->groups[g->table[at] - 1];
        if (group->hash == entry->key && group->meta == meta && !memcmp(group->bytes, bytes, length)) {
            *is_new = 0;
            return group;
        }
    }
}

static int add_to_group(PyObject *list, Groups *g, const sm_index *entry, const uint8_t *bytes, uint32_t length)
{
    int is_new, status = -1;
    Group *group = find_group(g, entry, bytes, &is_new);
    if (is_new) {
        PyObject *pair = PyTuple_New(2), *key = sm_key_object(entry, bytes);
        group->payloads = PyList_New(0);
        if (!pair || !key || !group->payloads) {
            Py_XDECREF(pair);
            Py_XDECREF(key);
            Py_XDECREF(group->payloads);
            return -1;
        }
        PyTuple_SetItem(pair, 0, key);
        PyTuple_SetItem(pair, 1, group->payloads);
        status = PyList_Append(list, pair);
        Py_DECREF(pair);
        if (status < 0)
            return -1;
    }
    uint32_t key_bytes = SM_META_LENGTH(entry->meta);
    PyObject *payload = sm_payload_object(entry, bytes + key_bytes, length - key_bytes);
    if (payload)
        status = PyList_Append(group->payloads, payload);
    Py_XDECREF(payload);
    return payload ? status : -1;
}

/* by_key(address of a sm_batch of events): a list of (key, list of payloads), by first appearance */
PyObject *sm_by_key(PyObject *module, PyObject *address)
{
    (void)module;
    const sm_batch *b = (const sm_batch *)(uintptr_t)PyLong_AsUnsignedLongLong(address);
    if (PyErr_Occurred())
        return NULL;
    uint32_t room = 16;
    while (room < 2 * b->rows)
        room *= 2;
    Groups g = {malloc(sizeof(Group) * (b->rows + 1)), calloc(room, sizeof(uint32_t)), 0, room - 1};
    PyObject *list = g.groups && g.table ? PyList_New(0) : PyErr_NoMemory();
    for (uint32_t s = 0; list && s < b->spans; s++) {
        const sm_span *span = &b->span[s];
        const sm_index *index = (const sm_index *)span->rows;
        uint32_t from = span->first ? index[-1].end : 0;
        for (uint32_t i = 0; list && i < span->count; i++) {
            sm_index entry = index[i]; /* one read: the check and the use must see the same values */
            if (!sm_entry_is_sound(span, i, &entry, from) ||
                add_to_group(list, &g, &entry, span->bytes + from, entry.end - from) < 0)
                Py_CLEAR(list);
            from = entry.end;
        }
    }
    free(g.groups);
    free(g.table);
    return list;
}
