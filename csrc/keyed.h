/*
 * The mapping of keyed state, as keyed.c (one key at a time) and many.c (a column of keys) share it. Include after interpreter.h.
 */
#ifndef SHARDMEM_KEYED_H
#define SHARDMEM_KEYED_H

#include "objects.h"

/* The value of one key in memory. value: NULL: it is `number`, of a map of int or float, and an object is made when one is
 * asked for. dirty: it is among the written ones of its map. gone: it has left its map for good. */
typedef struct {
    PyObject_HEAD PyObject *key, *value;
    union {
        int64_t whole;
        double real;
    } number;
    char dirty, gone, is_real;
} Cell;

/* word, meta: the key as frames carry it. cell: a reference; NULL: the entry is free */
typedef struct {
    uint64_t word;
    uint32_t meta;
    Cell *cell;
} Entry;

/*
 * live: a cell of each key in memory; such a key has been looked up in the store and belongs to this shard. dirty: a list of
 * the cells that were written, or only read if values are objects: those can change in place. last: the cell that was
 * asked for last, because `map[key] += 1` asks twice. All that is not the plain case (a key of another type, one that is not
 * in memory, a value of another type) goes to Python methods of a subclass.
 *
 * entries: of cells that are live, or gone since: they are found by what a frame says, without an object of the key.
 * left: how many have gone since entries were made.
 */
typedef struct {
    PyObject_HEAD PyObject *live, *dirty;
    PyObject *plain; /* the exact type of values; NULL: objects */
    PyObject *last_key;
    Cell *last;
    Entry *entries;
    uint32_t room, used, left; /* room: a power of two, or 0 */
} StateMap;

extern PyTypeObject *sm_cell_type;

/* borrowed; NULL with an error */
static inline PyObject *sm_cell_value(Cell *cell)
{
    if (unlikely(!cell->value))
        cell->value = cell->is_real ? PyFloat_FromDouble(cell->number.real) : PyLong_FromLongLong(cell->number.whole);
    return cell->value;
}

static inline int sm_mark(StateMap *self, Cell *cell)
{
    if (likely(cell->dirty))
        return 0;
    if (PyList_Append(self->dirty, (PyObject *)cell) < 0)
        return -1;
    cell->dirty = 1;
    return 0;
}

static inline int sm_is_plain_value(const StateMap *self, PyObject *value)
{
    if (!self->plain)
        return 1;
    if ((PyObject *)Py_TYPE(value) != self->plain)
        return 0;
    if (Py_TYPE(value) == &PyLong_Type) {
        int overflow;
        PyLong_AsLongLongAndOverflow(value, &overflow);
        return !overflow;
    }
    if (Py_TYPE(value) == &PyUnicode_Type && !PyUnicode_AsUTF8AndSize(value, NULL)) {
        PyErr_Clear(); /* lone surrogates: a checkpoint could not write it, long after the event that did it */
        return 0;
    }
    return 1;
}

/* store_keys.c. sm_any_key: text with lone surrogates too, whose bytes are held then; 0: an error is set */
int sm_any_key(PyObject *key, sm_event *e, PyObject **held);
PyObject *sm_store_keys(PyObject *module, PyObject *args);
PyObject *sm_slots_of_keys(PyObject *module, PyObject *args);

/* by_key.c */
PyObject *sm_by_key(PyObject *module, PyObject *address);

/* many.c */
void sm_forget_entries(StateMap *self);
PyObject *sm_absent(StateMap *self, PyObject *source);
PyObject *sm_add_each(StateMap *self, PyObject *const *args, Py_ssize_t n);
PyObject *sm_get_each(StateMap *self, PyObject *const *args, Py_ssize_t n);
PyObject *sm_set_each(StateMap *self, PyObject *const *args, Py_ssize_t n);

#endif
