/* role: none
 * The events of a batch as Python objects: lists of them, and one pair at a time.
 */
#include "interpreter.h"

#include "objects.h"

/* ---- lists ----------------------------------------------------------------------------------------------------------- */

enum { DECODE_KEYS = 0, DECODE_PAYLOADS = 1 };

/* decode(address of a sm_batch, what): a list of keys, or of payloads. Copies. */
static PyObject *decode(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    (void)module;
    if (n != 2)
        return PyErr_Format(PyExc_TypeError, "decode takes the address of a batch and what to make of it");
    const sm_batch *b = (const sm_batch *)(uintptr_t)PyLong_AsUnsignedLongLong(args[0]);
    long what = PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    PyObject *list = PyList_New((Py_ssize_t)b->rows);
    Py_ssize_t at = 0;
    for (uint32_t s = 0; list && s < b->spans; s++) {
        const sm_span *span = &b->span[s];
        const sm_index *index = (const sm_index *)span->rows;
        uint32_t from = span->first ? index[-1].end : 0;
        for (uint32_t i = 0; i < span->count; i++, at++) {
            sm_index entry = index[i]; /* one read: the check and the use must see the same values */
            PyObject *item = NULL;
            if (likely(sm_entry_is_sound(span, i, &entry, from))) {
                const uint8_t *bytes = span->bytes + from;
                uint32_t key_length = SM_META_LENGTH(entry.meta);
                item = what == DECODE_KEYS
                           ? sm_key_object(&entry, bytes)
                           : sm_payload_object(&entry, bytes + key_length, entry.end - from - key_length);
            }
            if (unlikely(!item)) {
                Py_DECREF(list);
                return NULL;
            }
            PyList_SetItem(list, at, item);
            from = entry.end;
        }
    }
    return list;
}

/* ---- one pair at a time ------------------------------------------------------------------------------------------------ */

/*
 * An iterator over (key, payload). A pair is made when it is asked for: one that the handler is done with is freed before the
 * next is made, in the memory that the processor has at hand.
 */
typedef struct {
    PyObject_HEAD PyObject *owner; /* of the batch's memory; NULL: there is nothing left */
    PyObject *ended;               /* of a batch that has ended: raises when it is called */
    PyObject *pair;                /* the last one */
    const sm_span *span, *next, *end;
    uint32_t row, count, from; /* the next in this span; so many are in it; where the one before ended */
    uint32_t taken, rows;
} Pairs;

static int may_change_pairs;

/*
 * A pair that nobody else has is filled anew, as zip() does: making one is a third of a step. Not where a tuple remembers its
 * hash and PyTuple_SetItem does not know of that. NULL: one of the two could not be made; the other is given back.
 */
static inline PyObject *pair_of(Pairs *self, PyObject *key, PyObject *payload)
{
    PyObject *pair = self->pair;
    if (unlikely(!key || !payload))
        goto failed;
    if (unlikely(!pair || Py_REFCNT(pair) != 1)) {
        Py_XDECREF(pair);
        self->pair = pair = PyTuple_New(2);
        if (!pair)
            goto failed;
        PyObject_GC_UnTrack(pair); /* it refers to nothing that refers to it: no collection looks at it */
    }
    PyTuple_SetItem(pair, 0, key);
    PyTuple_SetItem(pair, 1, payload);
    if (unlikely(!may_change_pairs))
        self->pair = NULL;
    else
        Py_INCREF(pair);
    return pair;
failed:
    Py_XDECREF(key);
    Py_XDECREF(payload);
    return NULL;
}

static int find_may_change_pairs(void)
{
    PyObject *changed = Py_BuildValue("(ii)", 1, 2), *fresh = Py_BuildValue("(ii)", 3, 2), *three = PyLong_FromLong(3);
    int may = 0;
    if (changed && fresh && three && PyObject_Hash(changed) != -1) {
        PyTuple_SetItem(changed, 0, three); /* takes the reference */
        three = NULL;
        may = PyObject_Hash(changed) == PyObject_Hash(fresh);
    }
    Py_XDECREF(changed);
    Py_XDECREF(fresh);
    Py_XDECREF(three);
    PyErr_Clear();
    return may;
}

/* 0: there is none */
static int next_span(Pairs *self)
{
    while (self->row == self->count) {
        if (self->next == self->end)
            return 0;
        const sm_span *span = self->span = self->next++;
        self->row = 0;
        self->count = span->count;
        self->from = span->first ? ((const sm_index *)span->rows)[-1].end : 0;
    }
    return 1;
}

static PyObject *pairs_next(Pairs *self)
{
    if (unlikely(self->row == self->count)) {
        if (self->ended)
            return PyObject_CallNoArgs(self->ended);
        if (!self->owner || !next_span(self)) {
            Py_CLEAR(self->owner);
            Py_CLEAR(self->pair);
            return NULL;
        }
    }
    const sm_span *span = self->span;
    sm_index entry = ((const sm_index *)span->rows)[self->row]; /* one read, as above */
    if (unlikely(!sm_entry_is_sound(span, self->row, &entry, self->from)))
        return NULL;
    const uint8_t *bytes = span->bytes + self->from;
    uint32_t key_length = SM_META_LENGTH(entry.meta), length = entry.end - self->from - key_length;
    self->from = entry.end;
    self->row++;
    self->taken++;
    return pair_of(self, sm_key_object(&entry, bytes), sm_payload_object(&entry, bytes + key_length, length));
}

/* close(ended): the batch's memory is not to be read any more; the next step calls this, which raises */
static PyObject *pairs_close(Pairs *self, PyObject *ended)
{
    PyObject *owner = self->owner, *before = self->ended;
    self->row = self->count = 0;
    self->owner = NULL;
    self->ended = NULL;
    if (owner) {
        Py_INCREF(ended);
        self->ended = ended;
    }
    Py_XDECREF(owner);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

/* position(): which event was taken last; None: none was, or all were gone through */
static PyObject *pairs_position(Pairs *self, PyObject *ignored)
{
    (void)ignored;
    if (!self->owner || !self->taken)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(self->taken - 1);
}

static PyObject *pairs_length_hint(Pairs *self, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLong(self->owner ? self->rows - self->taken : 0);
}

static int pairs_traverse(Pairs *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->ended);
    return 0;
}

static int pairs_clear(Pairs *self)
{
    self->row = self->count = 0;
    Py_CLEAR(self->owner);
    Py_CLEAR(self->ended);
    Py_CLEAR(self->pair);
    return 0;
}

static void pairs_dealloc(Pairs *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    pairs_clear(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef pairs_methods[] = {
    {"close", (PyCFunction)pairs_close, METH_O, "close(ended): its batch has ended; the next step calls this"},
    {"position", (PyCFunction)pairs_position, METH_NOARGS, "which event was taken last, or None"},
    {"__length_hint__", (PyCFunction)pairs_length_hint, METH_NOARGS, "how many are left"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot pairs_slots[] = {
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, pairs_next},
    {Py_tp_dealloc, pairs_dealloc},
    {Py_tp_traverse, pairs_traverse},
    {Py_tp_clear, pairs_clear},
    {Py_tp_methods, pairs_methods},
    {0, NULL},
};

static PyType_Spec pairs_spec = {"shardmem._native.Pairs", sizeof(Pairs), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 pairs_slots};

static PyTypeObject *pairs_type;

/* pairs(address of a sm_batch, who keeps its memory): an iterator over (key, payload). Copies. */
static PyObject *pairs(PyObject *module, PyObject *const *args, Py_ssize_t n)
{
    (void)module;
    if (n != 2)
        return PyErr_Format(PyExc_TypeError, "pairs takes the address of a batch and who keeps its memory");
    const sm_batch *b = (const sm_batch *)(uintptr_t)PyLong_AsUnsignedLongLong(args[0]);
    if (PyErr_Occurred())
        return NULL;
    Pairs *made = (Pairs *)PyType_GenericAlloc(pairs_type, 0);
    if (!made)
        return NULL;
    Py_INCREF(args[1]);
    made->owner = args[1];
    made->next = b->span;
    made->end = b->span + b->spans;
    made->rows = (uint32_t)b->rows;
    return (PyObject *)made;
}

static PyMethodDef functions[] = {
    {"decode", (PyCFunction)(void (*)(void))decode, METH_FASTCALL, "decode(batch, what) -> list"},
    {"pairs", (PyCFunction)(void (*)(void))pairs, METH_FASTCALL, "pairs(batch, owner) -> iterator"},
    {NULL, NULL, 0, NULL},
};

int sm_add_decode(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&pairs_spec);
    int status =
        type && PyModule_AddFunctions(module, functions) == 0 && PyObject_SetAttrString(module, "Pairs", type) == 0
            ? SM_OK
            : SM_UNREADY;
    pairs_type = (PyTypeObject *)type; /* the module keeps it */
    may_change_pairs = find_may_change_pairs();
    Py_XDECREF(type);
    return status;
}
