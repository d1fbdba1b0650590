/* role: none
 * What keyed state needs once per event: the mapping that a handler reads and writes.
 */
#include "interpreter.h"

#include <stddef.h>
#include <structmember.h>

#include "keyed.h"

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

static PyObject *get_value(Cell *self, void *ignored)
{
    (void)ignored;
    PyObject *value = sm_cell_value(self);
    Py_XINCREF(value);
    return value;
}

static int set_value(Cell *self, PyObject *value, void *ignored)
{
    (void)ignored;
    PyObject *before = self->value;
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "a cell has a value");
        return -1;
    }
    Py_INCREF(value);
    self->value = value;
    Py_XDECREF(before);
    return 0;
}

static PyGetSetDef cell_getsets[] = {
    {"value", (getter)get_value, (setter)set_value, "the value", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef cell_members[] = {
    {"dirty", T_BOOL, offsetof(Cell, dirty), READONLY, "whether it is among the written ones"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot cell_slots[] = {
    {Py_tp_init, cell_init},
    {Py_tp_traverse, cell_traverse},
    {Py_tp_clear, cell_clear},
    {Py_tp_dealloc, cell_dealloc},
    {Py_tp_members, cell_members},
    {Py_tp_getset, cell_getsets},
    {0, NULL},
};

static PyType_Spec cell_spec = {"shardmem._native.Cell", sizeof(Cell), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                cell_slots};

PyTypeObject *sm_cell_type;

static inline int is_plain_key(PyObject *key)
{
    PyTypeObject *type = Py_TYPE(key);
    return type == &PyLong_Type || type == &PyUnicode_Type || type == &PyBytes_Type;
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
    Cell *cell = (Cell *)PyDict_GetItemWithError(self->live, key);
    if (unlikely(!cell || Py_TYPE(cell) != sm_cell_type))
        return NULL;
    PyObject *old_key = self->last_key, *old = (PyObject *)self->last;
    Py_INCREF(key);
    Py_INCREF(cell);
    self->last_key = key;
    self->last = cell;
    Py_XDECREF(old_key);
    Py_XDECREF(old);
    return cell;
}

/* A value that the handler gets to see, as a new reference: it may change it in place. */
static PyObject *shown(StateMap *self, Cell *cell)
{
    if (!self->plain && sm_mark(self, cell) < 0)
        return NULL;
    PyObject *value = sm_cell_value(cell);
    Py_XINCREF(value);
    return value;
}

static PyObject *map_subscript(StateMap *self, PyObject *key)
{
    Cell *cell = live_cell(self, key);
    if (likely(cell != NULL))
        return shown(self, cell);
    return PyErr_Occurred() ? NULL : PyObject_CallMethod((PyObject *)self, "_miss", "(O)", key);
}

static int map_assign(StateMap *self, PyObject *key, PyObject *value)
{
    PyObject *done;
    if (likely(value && sm_is_plain_value(self, value))) {
        Cell *cell = live_cell(self, key);
        if (likely(cell != NULL)) {
            if (sm_mark(self, cell) < 0)
                return -1;
            PyObject *before = cell->value;
            Py_INCREF(value);
            cell->value = value;
            Py_XDECREF(before);
            return 0;
        }
        if (PyErr_Occurred())
            return -1;
    }
    done = value ? PyObject_CallMethod((PyObject *)self, "_assign", "(OO)", key, value)
                 : PyObject_CallMethod((PyObject *)self, "_delete", "(O)", key);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

static int map_contains(StateMap *self, PyObject *key)
{
    if (live_cell(self, key))
        return 1;
    PyObject *found = PyErr_Occurred() ? NULL : PyObject_CallMethod((PyObject *)self, "_has", "(O)", key);
    int is_there = found ? PyObject_IsTrue(found) : -1;
    Py_XDECREF(found);
    return is_there;
}

static PyObject *map_get(StateMap *self, PyObject *const *args, Py_ssize_t n)
{
    if (n < 1 || n > 2)
        return PyErr_Format(PyExc_TypeError, "get takes a key, and what to return if there is no value");
    Cell *cell = live_cell(self, args[0]);
    if (cell)
        return shown(self, cell);
    return PyErr_Occurred()
               ? NULL
               : PyObject_CallMethod((PyObject *)self, "_get", "(OO)", args[0], n == 2 ? args[1] : Py_None);
}

/* mark(cell): it is among the written ones */
static PyObject *map_mark(StateMap *self, PyObject *cell)
{
    if (Py_TYPE(cell) != sm_cell_type)
        return PyErr_Format(PyExc_TypeError, "mark takes a cell");
    if (sm_mark(self, (Cell *)cell) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* forget_found(): cells are about to leave `live`, and may return */
static PyObject *map_forget_found(StateMap *self, PyObject *ignored)
{
    (void)ignored;
    forget_last(self);
    sm_forget_entries(self);
    Py_RETURN_NONE;
}

/* leave(cell): it has left for good, and is not saved */
static PyObject *map_leave(StateMap *self, PyObject *object)
{
    Cell *cell = (Cell *)object;
    if (Py_TYPE(cell) != sm_cell_type)
        return PyErr_Format(PyExc_TypeError, "leave takes a cell");
    forget_last(self);
    cell->dirty = 0;
    self->left += !cell->gone;
    cell->gone = 1;
    Py_RETURN_NONE;
}

/* take_dirty(): (keys, values) of the cells that were written, which are clean then */
static PyObject *map_take_dirty(StateMap *self, PyObject *ignored)
{
    (void)ignored;
    Py_ssize_t n = PyList_Size(self->dirty);
    PyObject *cells = self->dirty, *fresh = PyList_New(0), *keys = PyList_New(0), *values = PyList_New(0), *made = NULL;
    for (Py_ssize_t i = 0; fresh && keys && values && i < n; i++) {
        Cell *cell = (Cell *)PyList_GetItem(cells, i);
        if (!cell->dirty) /* it was removed */
            continue;
        PyObject *value = sm_cell_value(cell);
        if (!value || PyList_Append(keys, cell->key) < 0 || PyList_Append(values, value) < 0)
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
    sm_forget_entries(self);
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
    sm_forget_entries(self);
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
    {"entries", T_UINT, offsetof(StateMap, used), READONLY, "how many keys are found without an object of them"},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef map_methods[] = {
    {"get", (PyCFunction)(void (*)(void))map_get, METH_FASTCALL, "get(key, default=None)"},
    {"mark", (PyCFunction)map_mark, METH_O, "mark(cell): it was written"},
    {"forget_found", (PyCFunction)map_forget_found, METH_NOARGS, "cells are about to leave memory"},
    {"leave", (PyCFunction)map_leave, METH_O, "leave(cell): it has left memory for good"},
    {"absent", (PyCFunction)sm_absent, METH_O, "absent(keys) -> list of those that are not in memory"},
    {"add_each", (PyCFunction)(void (*)(void))sm_add_each, METH_FASTCALL, "add_each(keys, amounts)"},
    {"get_each", (PyCFunction)(void (*)(void))sm_get_each, METH_FASTCALL, "get_each(keys[, out])"},
    {"set_each", (PyCFunction)(void (*)(void))sm_set_each, METH_FASTCALL, "set_each(keys, values)"},
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

static PyMethodDef functions[] = {
    {"store_keys", sm_store_keys, METH_VARARGS, "store_keys(keys, name, slots, base=0) -> list of bytes"},
    {"slots_of_keys", sm_slots_of_keys, METH_VARARGS, "slots_of_keys(keys, slots, base=0) -> bytes of uint32"},
    {"by_key", sm_by_key, METH_O, "by_key(batch) -> list of (key, payloads)"},
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
    sm_cell_type = (PyTypeObject *)cell; /* the module keeps it */
    Py_XDECREF(type);
    Py_XDECREF(cell);
    return status;
}
