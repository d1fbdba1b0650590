/* role: none
 * What keyed state needs once per event or once per key: the mapping that a handler reads and writes, keys as the store
 * writes them, and a batch grouped by key.
 */
#include "interpreter.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>

#include "objects.h"

/* The value of one key in memory. dirty: it is among the written ones of its map. */
typedef struct {
    PyObject_HEAD PyObject *key, *value;
    char dirty;
} Cell;

/*
 * live: a cell of each key in memory; such a key has been looked up in the store and belongs to this shard. dirty: a list of
 * the cells that were written, or only read if values are objects: those can change in place. last: the cell that was
 * asked for last, because `map[key] += 1` asks twice. All that is not the plain case (a key of another type, one that is not
 * in memory, a value of another type) goes to Python methods of a subclass.
 */
typedef struct {
    PyObject_HEAD PyObject *live, *dirty;
    PyObject *plain; /* the exact type of values; NULL: objects */
    PyObject *last_key;
    Cell *last;
} StateMap;

static int cell_init(Cell *self, PyObject *args, PyObject *keywords)
{
    PyObject *key, *value;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "OO", &key, &value))
        return -1;
    Py_INCREF(key);
    Py_XDECREF(self->key);
    self->key = key;
    Py_INCREF(value);
    Py_XDECREF(self->value);
    self->value = value;
    PyTypeObject *type = Py_TYPE(value);
    if (type == &PyLong_Type || type == &PyFloat_Type || type == &PyUnicode_Type || type == &PyBytes_Type)
        PyObject_GC_UnTrack(
            self); /* it refers to nothing that could refer to it: a million of them cost no collection */
    return 0;
}

static int cell_traverse(Cell *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->key);
    Py_VISIT(self->value);
    return 0;
}

static int cell_clear(Cell *self)
{
    Py_CLEAR(self->key);
    Py_CLEAR(self->value);
    return 0;
}

static void release(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release_memory = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release_memory(self);
    Py_DECREF(type);
}

static void cell_dealloc(Cell *self)
{
    PyObject_GC_UnTrack(self);
    cell_clear(self);
    release((PyObject *)self);
}

static PyMemberDef cell_members[] = {
    {"value", T_OBJECT_EX, offsetof(Cell, value), 0, "the value"},
    {"dirty", T_BOOL, offsetof(Cell, dirty), 0, "whether it is among the written ones"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot cell_slots[] = {
    {Py_tp_init, cell_init},       {Py_tp_traverse, cell_traverse}, {Py_tp_clear, cell_clear},
    {Py_tp_dealloc, cell_dealloc}, {Py_tp_members, cell_members},   {0, NULL},
};

static PyType_Spec cell_spec = {"shardmem._native.Cell", sizeof(Cell), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                cell_slots};

static PyTypeObject *cell_type;

static inline int is_plain_key(PyObject *key)
{
    PyTypeObject *type = Py_TYPE(key);
    return type == &PyLong_Type || type == &PyUnicode_Type || type == &PyBytes_Type;
}

static inline int is_plain_value(const StateMap *self, PyObject *value)
{
    if (!self->plain)
        return 1;
    if ((PyObject *)Py_TYPE(value) != self->plain)
        return 0;
    if (Py_TYPE(value) != &PyLong_Type)
        return 1;
    int overflow;
    PyLong_AsLongLongAndOverflow(value, &overflow);
    return !overflow;
}

static void forget_last(StateMap *self)
{
    Py_CLEAR(self->last_key);
    Py_CLEAR(self->last);
}

/* borrowed; NULL without an error: not in memory, or not a plain key */
static inline Cell *live_cell(StateMap *self, PyObject *key)
{
    if (key == self->last_key)
        return self->last;
    if (unlikely(!is_plain_key(key)))
        return NULL;
    Cell *cell = (Cell *)sm_dict_find(self->live, key);
    if (unlikely(!cell || Py_TYPE(cell) != cell_type)) {
        Py_XDECREF(cell);
        return NULL;
    }
    PyObject *old_key = self->last_key, *old = (PyObject *)self->last;
    Py_INCREF(key);
    self->last_key = key;
    self->last = cell;
    Py_XDECREF(old_key);
    Py_XDECREF(old);
    return cell;
}

static int mark(StateMap *self, Cell *cell)
{
    if (likely(cell->dirty))
        return 0;
    if (PyList_Append(self->dirty, (PyObject *)cell) < 0)
        return -1;
    cell->dirty = 1;
    return 0;
}

/* The value of a live key, that the handler gets to see and may change in place: a new reference. NULL without an error: as
 * live_cell says. */
static inline PyObject *live_value(StateMap *self, PyObject *key)
{
    PyObject *value = NULL;
    SM_LOCKED(self, {
        Cell *cell = live_cell(self, key);
        if (likely(cell && (self->plain || mark(self, cell) == 0)))
            SM_LOCKED(cell, {
                value = cell->value;
                Py_INCREF(value);
            });
    });
    return value;
}

static PyObject *map_subscript(StateMap *self, PyObject *key)
{
    PyObject *value = live_value(self, key);
    if (likely(value != NULL))
        return value;
    return PyErr_Occurred() ? NULL : PyObject_CallMethod((PyObject *)self, "_miss", "(O)", key);
}

/* 1: it is done; 0: it takes the slow way, or an error */
static inline int assign_live(StateMap *self, PyObject *key, PyObject *value)
{
    PyObject *before = NULL;
    SM_LOCKED(self, {
        Cell *cell = live_cell(self, key);
        if (likely(cell && mark(self, cell) == 0))
            SM_LOCKED(cell, {
                before = cell->value;
                Py_INCREF(value);
                cell->value = value;
            });
    });
    Py_XDECREF(before);
    return before != NULL;
}

static int map_assign(StateMap *self, PyObject *key, PyObject *value)
{
    if (likely(value && is_plain_value(self, value))) {
        if (likely(assign_live(self, key, value)))
            return 0;
        if (PyErr_Occurred())
            return -1;
    }
    PyObject *done = value ? PyObject_CallMethod((PyObject *)self, "_assign", "(OO)", key, value)
                           : PyObject_CallMethod((PyObject *)self, "_delete", "(O)", key);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int map_contains(StateMap *self, PyObject *key)
{
    int is_there;
    SM_LOCKED(self, is_there = live_cell(self, key) != NULL);
    if (is_there)
        return 1;
    PyObject *found = PyErr_Occurred() ? NULL : PyObject_CallMethod((PyObject *)self, "_has", "(O)", key);
    is_there = found ? PyObject_IsTrue(found) : -1;
    Py_XDECREF(found);
    return is_there;
}

static PyObject *map_get(StateMap *self, PyObject *const *args, Py_ssize_t n)
{
    if (n < 1 || n > 2)
        return PyErr_Format(PyExc_TypeError, "get takes a key, and what to return if there is no value");
    PyObject *value = live_value(self, args[0]);
    if (value || PyErr_Occurred())
        return value;
    return PyObject_CallMethod((PyObject *)self, "_get", "(OO)", args[0], n == 2 ? args[1] : Py_None);
}

/* mark(cell): it is among the written ones */
static PyObject *map_mark(StateMap *self, PyObject *cell)
{
    if (Py_TYPE(cell) != cell_type)
        return PyErr_Format(PyExc_TypeError, "mark takes a cell");
    int status;
    SM_LOCKED(self, status = mark(self, (Cell *)cell));
    if (status < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* forget_last(): cells are about to leave `live` */
static PyObject *map_forget_last(StateMap *self, PyObject *ignored)
{
    (void)ignored;
    SM_LOCKED(self, forget_last(self));
    Py_RETURN_NONE;
}

static PyObject *take_dirty(StateMap *self)
{
    Py_ssize_t n = PyList_Size(self->dirty);
    PyObject *cells = self->dirty, *fresh = PyList_New(0), *keys = PyList_New(0), *values = PyList_New(0), *made = NULL;
    for (Py_ssize_t i = 0; fresh && keys && values && i < n; i++) {
        Cell *cell = (Cell *)PyList_GetItem(cells, i);
        if (!cell->dirty) /* it was removed */
            continue;
        if (PyList_Append(keys, cell->key) < 0 || PyList_Append(values, cell->value) < 0)
            goto done;
    }
    if (!fresh || !keys || !values || !(made = PyTuple_Pack(2, keys, values)))
        goto done;
    for (Py_ssize_t i = 0; i < n; i++)
        ((Cell *)PyList_GetItem(cells, i))->dirty = 0;
    self->dirty = fresh;
    fresh = cells;
done:
    Py_XDECREF(fresh);
    Py_XDECREF(keys);
    Py_XDECREF(values);
    return made;
}

/* take_dirty(): (keys, values) of the cells that were written, which are clean then */
static PyObject *map_take_dirty(StateMap *self, PyObject *ignored)
{
    PyObject *made;
    (void)ignored;
    SM_LOCKED(self, made = take_dirty(self));
    return made;
}

static int map_init(StateMap *self, PyObject *args, PyObject *keywords)
{
    PyObject *plain = Py_None;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "|O", &plain))
        return -1;
    Py_CLEAR(self->live);
    Py_CLEAR(self->dirty);
    Py_CLEAR(self->plain);
    forget_last(self);
    self->live = PyDict_New();
    self->dirty = PyList_New(0);
    if (!self->live || !self->dirty)
        return -1;
    if (plain != Py_None) {
        Py_INCREF(plain);
        self->plain = plain;
    }
    return 0;
}

static int map_traverse(StateMap *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->live);
    Py_VISIT(self->dirty);
    Py_VISIT(self->plain);
    Py_VISIT(self->last);
    return 0;
}

static int map_clear(StateMap *self)
{
    Py_CLEAR(self->live);
    Py_CLEAR(self->dirty);
    Py_CLEAR(self->plain);
    forget_last(self);
    return 0;
}

static void map_dealloc(StateMap *self)
{
    PyObject_GC_UnTrack(self);
    map_clear(self);
    release((PyObject *)self);
}

static PyMemberDef map_members[] = {
    {"live", T_OBJECT_EX, offsetof(StateMap, live), 0, "dict: the cell of each key in memory"},
    {"dirty", T_OBJECT_EX, offsetof(StateMap, dirty), READONLY, "list: cells that were written"},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef map_methods[] = {
    {"get", (PyCFunction)(void (*)(void))map_get, METH_FASTCALL, "get(key, default=None)"},
    {"mark", (PyCFunction)map_mark, METH_O, "mark(cell): it was written"},
    {"forget_last", (PyCFunction)map_forget_last, METH_NOARGS, "cells are about to leave memory"},
    {"take_dirty", (PyCFunction)map_take_dirty, METH_NOARGS, "(keys, values) that were written"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot map_slots[] = {
    {Py_tp_init, map_init},           {Py_tp_traverse, map_traverse},
    {Py_tp_clear, map_clear},         {Py_tp_dealloc, map_dealloc},
    {Py_tp_members, map_members},     {Py_tp_methods, map_methods},
    {Py_mp_subscript, map_subscript}, {Py_mp_ass_subscript, map_assign},
    {Py_sq_contains, map_contains},   {0, NULL},
};

static PyType_Spec map_spec = {"shardmem._native.StateMap", sizeof(StateMap), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, map_slots};

/* ---- keys as the store writes them -------------------------------------------------------------------------------- */

/* of `slots` from `base` on: all of them, or those of one partition */
static uint32_t slot_of_event(const sm_event *e, uint32_t slots, uint32_t base)
{
    return base + ((uint32_t)(SM_META_KIND(e->meta) == SM_KEY_INT ? sm_hash_int(e->key) : e->key) & (slots - 1));
}

static void put_big_endian(uint8_t *to, uint64_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--, value >>= 8)
        to[i] = (uint8_t)value;
}

/* Sorts as: slot, name, type, then integers by value and texts by their bytes. */
static PyObject *store_key(const sm_event *e, uint32_t slot, const char *name, Py_ssize_t name_bytes)
{
    int is_int = SM_META_KIND(e->meta) == SM_KEY_INT;
    uint32_t length = is_int ? 8 : SM_META_LENGTH(e->meta);
    PyObject *made = PyBytes_FromStringAndSize(NULL, 2 + name_bytes + 1 + 1 + (Py_ssize_t)length);
    if (!made)
        return NULL;
    uint8_t *at = (uint8_t *)PyBytes_AsString(made);
    put_big_endian(at, slot, 2);
    memcpy(at + 2, name, (size_t)name_bytes);
    at += 2 + name_bytes;
    *at++ = 0;
    if (is_int) {
        int is_high = (e->meta & SM_META_UNSIGNED) != 0;
        *at++ = is_high ? 'u' : 'i';
        put_big_endian(at, is_high ? e->key : e->key ^ UINT64_C(1) << 63, 8);
    } else {
        *at++ = SM_META_KIND(e->meta) == SM_KEY_STR ? 's' : 'b';
        memcpy(at, e->key_bytes, length);
    }
    return made;
}

/* the keys that C's plain way does not take: text with lone surrogates is written as the bytes that it stands for */
static int any_key(PyObject *key, sm_event *e, PyObject **held)
{
    *held = NULL;
    if (likely(sm_plain_key(key, e) && SM_META_KIND(e->meta) != SM_KEY_NONE))
        return 1;
    if (Py_TYPE(key) != &PyUnicode_Type) {
        PyErr_Format(PyExc_TypeError, "a key is int, str or bytes, and within its range; this is %R", key);
        return 0;
    }
    *held = PyUnicode_AsEncodedString(key, "utf-8", "surrogateescape");
    if (!*held)
        return 0;
    sm_plain_key(*held, e);
    e->meta = (uint32_t)SM_KEY_STR << 30 | SM_META_LENGTH(e->meta);
    return 1;
}

static PyObject *keys_for_store(PyObject *keys, const char *name, Py_ssize_t name_bytes, uint32_t slots, uint32_t base)
{
    PyObject *held;
    Py_ssize_t n = PyList_Size(keys);
    PyObject *made = PyList_New(n);
    for (Py_ssize_t i = 0; made && i < n; i++) {
        sm_event e = {0};
        PyObject *one = NULL;
        if (any_key(PyList_GetItem(keys, i), &e, &held))
            one = store_key(&e, slot_of_event(&e, slots, base), name, name_bytes);
        Py_XDECREF(held);
        if (one)
            PyList_SetItem(made, i, one);
        else
            Py_CLEAR(made);
    }
    return made;
}

/* store_keys(keys: list, name: bytes, slots: int, base: int = 0): a list of bytes */
static PyObject *store_keys(PyObject *module, PyObject *args)
{
    PyObject *keys, *made;
    const char *name;
    Py_ssize_t name_bytes;
    unsigned int slots, base = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "Oy#I|I", &keys, &name, &name_bytes, &slots, &base))
        return NULL;
    if (!PyList_Check(keys))
        return PyErr_Format(PyExc_TypeError, "store_keys takes a list");
    SM_LOCKED(keys, made = keys_for_store(keys, name, name_bytes, slots, base));
    return made;
}

static PyObject *slots_for_keys(PyObject *keys, uint32_t slots, uint32_t base)
{
    PyObject *held;
    Py_ssize_t n = PyList_Size(keys);
    PyObject *made = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(uint32_t));
    for (Py_ssize_t i = 0; made && i < n; i++) {
        sm_event e = {0};
        if (any_key(PyList_GetItem(keys, i), &e, &held)) {
            uint32_t slot = slot_of_event(&e, slots, base);
            memcpy(PyBytes_AsString(made) + i * (Py_ssize_t)sizeof slot, &slot, sizeof slot);
        } else {
            Py_CLEAR(made);
        }
        Py_XDECREF(held);
    }
    return made;
}

/* slots_of_keys(keys: list, slots: int, base: int = 0): the slot of each, as the bytes of an array of uint32 */
static PyObject *slots_of_keys(PyObject *module, PyObject *args)
{
    PyObject *keys, *made;
    unsigned int slots, base = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OI|I", &keys, &slots, &base))
        return NULL;
    if (!PyList_Check(keys))
        return PyErr_Format(PyExc_TypeError, "slots_of_keys takes a list");
    SM_LOCKED(keys, made = slots_for_keys(keys, slots, base));
    return made;
}

/* ---- a batch by key ------------------------------------------------------------------------------------------------ */

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
static PyObject *by_key(PyObject *module, PyObject *address)
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

static PyMethodDef functions[] = {
    {"store_keys", store_keys, METH_VARARGS, "store_keys(keys, name, slots, base=0) -> list of bytes"},
    {"slots_of_keys", slots_of_keys, METH_VARARGS, "slots_of_keys(keys, slots, base=0) -> bytes of uint32"},
    {"by_key", by_key, METH_O, "by_key(batch) -> list of (key, payloads)"},
    {NULL, NULL, 0, NULL},
};

int sm_add_keyed(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&map_spec), *cell = PyType_FromSpec(&cell_spec);
    int status = type && cell && PyModule_AddFunctions(module, functions) == 0 &&
                         PyObject_SetAttrString(module, "StateMap", type) == 0 &&
                         PyObject_SetAttrString(module, "Cell", cell) == 0
                     ? SM_OK
                     : SM_UNREADY;
    cell_type = (PyTypeObject *)cell; /* the module keeps it */
    Py_XDECREF(type);
    Py_XDECREF(cell);
    return status;
}
