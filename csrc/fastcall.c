/* role: none
 * The calls that a program makes once per event. cffi's call costs about 120 ns and gives up the interpreter's
 * lock, which beside a busy thread costs microseconds; METH_FASTCALL costs a quarter of it and keeps the lock.
 * These functions never wait and never run Python code between borrowing a pointer and the last use of it; all
 * that is not the plain case (other types, a full lane, a fork, keywords) goes to a Python callable.
 *
 * They live in the same extension module as cffi's functions.
 */
#include "interpreter.h"

#include "objects.h"

typedef struct {
    PyObject_HEAD sm_sender *sender; /* NULL: everything takes the slow way */
    PyObject *owner;                 /* of the sender's memory */
    PyObject *slow;                  /* called with what push was called with */
} Pusher;

/* 0: this process is a fork of the sender's; its mutex must not be touched */
static int lock_sender(sm_sender *s)
{
    if (unlikely(sm_sender_forked(s)))
        return 0;
    if (likely(sm_sender_trylock(s)))
        return 1;
    /* the holder may be a send that needs no interpreter's lock; but a push that waits for one must not hold it */
    PyThreadState *state = PyEval_SaveThread();
    sm_sender_lock(s);
    PyEval_RestoreThread(state);
    return 1;
}

static int plain_payload(PyObject *payload, sm_event *e)
{
    char *bytes;
    Py_ssize_t length;
    if (Py_TYPE(payload) == &PyBytes_Type) {
        PyBytes_AsStringAndSize(payload, &bytes, &length);
#ifndef Py_GIL_DISABLED /* there, another thread may make it shorter while it is read */
    } else if (Py_TYPE(payload) == &PyByteArray_Type) {
        bytes = PyByteArray_AsString(payload);
        length = PyByteArray_Size(payload);
#endif
    } else if (payload == Py_None) { /* after the key: meta is its */
        e->meta |= SM_META_MISSING;
        bytes = "";
        length = 0;
    } else {
        return 0;
    }
    if ((uint64_t)length > UINT32_MAX / 2)
        return 0;
    e->payload = (const uint8_t *)bytes;
    e->length = (uint32_t)length;
    return 1;
}

static PyObject *call_slow(PyObject *callable, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    if (!callable)
        return PyErr_Format(PyExc_RuntimeError, "this producer has been collected");
    Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    PyObject *positional = PyTuple_New(n), *keywords = named ? PyDict_New() : NULL, *result = NULL;
    if (!positional || (named && !keywords))
        goto done;
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_INCREF(args[i]);
        PyTuple_SetItem(positional, i, args[i]);
    }
    for (Py_ssize_t i = 0; i < named; i++)
        if (PyDict_SetItem(keywords, PyTuple_GetItem(names, i), args[n + i]) < 0)
            goto done;
    result = PyObject_Call(callable, positional, keywords);
done:
    Py_XDECREF(positional);
    Py_XDECREF(keywords);
    return result;
}

/* NULL: everything takes the slow way. owner: a new reference. Waiting for the lock lets other threads run, and one of them may
 * detach: the memory stays until we are out of it. */
static inline sm_sender *sender_of(Pusher *self, PyObject **owner)
{
    sm_sender *s;
    SM_LOCKED(self, {
        s = self->sender;
        *owner = self->owner;
        Py_XINCREF(*owner);
    });
    return s;
}

static int push_plain(Pusher *self, PyObject *key, PyObject *payload)
{
    sm_event e;
    uint32_t shard;
    int status = SM_CLOSED;
    if (unlikely(!sm_plain_key(key, &e)))
        return status;
    PyObject *owner;
    sm_sender *s = sender_of(self, &owner);
    if (likely(s && lock_sender(s))) {
        /* the payload is looked at only now */
        status = plain_payload(payload, &e) ? sm_push_one(s, &e, &shard) : SM_TOO_LARGE;
        sm_sender_unlock(s);
    }
    Py_XDECREF(owner);
    return status;
}

static PyObject *pusher_push(Pusher *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    if (likely(n == 2 && !names && push_plain(self, args[0], args[1]) == SM_OK))
        Py_RETURN_TRUE;
    return call_slow(self->slow, args, n, names);
}

/* offer(key, payload): True when it was accepted, False when it takes the slow way, which is the caller's */
static PyObject *pusher_offer(Pusher *self, PyObject *const *args, Py_ssize_t n)
{
    if (likely(n == 2 && push_plain(self, args[0], args[1]) == SM_OK))
        Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}

static PyObject *item_of(PyObject *list, Py_ssize_t i) { return PyList_GetItem(list, i); } /* borrowed */

/* (status, chunk, next, pending as uint32 bytes, shard, accepted) */
static PyObject *cursor_state(int status, const sm_cursor *c)
{
    return Py_BuildValue("iKKy#IK", status, (unsigned long long)c->chunk, (unsigned long long)c->next,
                         (const char *)c->pending, (Py_ssize_t)(c->pending_count * sizeof *c->pending),
                         (unsigned int)c->shard, (unsigned long long)c->accepted);
}

/* all events of two lists, as far as they are plain and find room; the lock is held */
static int push_lists(sm_sender *s, PyObject *keys, PyObject *payloads, sm_cursor *c)
{
    sm_event *events = sm_sender_events(s), judged;
    uint64_t n = (uint64_t)PyList_Size(keys), limit = sm_max_payload(s, 0);
    if ((uint64_t)PyList_Size(payloads) != n)
        return SM_TOO_LARGE;
    for (uint64_t i = 0; n > SM_CHUNK && i < n; i++)
        if (!sm_plain_key(item_of(keys, i), &judged) || !plain_payload(item_of(payloads, i), &judged) ||
            (uint64_t)SM_META_LENGTH(judged.meta) + judged.length > limit) {
            c->next = i;
            return SM_TOO_LARGE;
        }
    int status = SM_OK;
    while (status == SM_OK && c->next < n) {
        uint64_t start = c->next;
        uint32_t rows = (uint32_t)(n - start < SM_CHUNK ? n - start : SM_CHUNK);
        for (uint32_t i = 0; i < rows; i++) {
            sm_event *e = &events[i];
            if (unlikely(!sm_plain_key(item_of(keys, start + i), e) ||
                         !plain_payload(item_of(payloads, start + i), e) ||
                         (uint64_t)SM_META_LENGTH(e->meta) + e->length > limit)) {
                c->next = start + i;
                return SM_TOO_LARGE;
            }
        }
        status = sm_push_chunk(s, events, rows, c);
        if (status == SM_OK || c->pending_count) {
            c->chunk = start;
            c->next = start + rows;
        }
    }
    return status;
}

/*
 * push_many(keys, payloads): two lists of equal length, checked by the caller. None when all is accepted, else
 * the state above. SM_TOO_LARGE with next = the offending index means that some event is not plain (or too
 * large); nothing was accepted then.
 */
static PyObject *pusher_push_many(Pusher *self, PyObject *const *args, Py_ssize_t nargs)
{
    sm_cursor c;
    c.chunk = c.next = c.accepted = c.pending_count = c.shard = 0;
    if (nargs != 2 || !PyList_Check(args[0]) || !PyList_Check(args[1]))
        return PyErr_Format(PyExc_TypeError, "push_many takes two lists");
    PyObject *owner;
    sm_sender *s = sender_of(self, &owner);
    int status = !s ? SM_CLOSED : SM_FORKED;
    if (s && lock_sender(s)) {
        int collecting = PyGC_Disable(); /* a finaliser that pushes would wait for the lock that this thread holds */
        SM_LOCKED_BOTH(args[0], args[1], status = push_lists(s, args[0], args[1], &c));
        if (collecting)
            PyGC_Enable();
        sm_sender_unlock(s);
    }
    Py_XDECREF(owner);
    if (likely(status == SM_OK))
        Py_RETURN_NONE;
    return cursor_state(status, &c);
}

/* What push_columns was given, as long as C looks at it: data, offsets, keys, offsets of keys; offsets of origins, times,
 * what is missing. */
typedef struct {
    Py_buffer views[7];
    int count;
} Held;

static void let_go(Held *held)
{
    while (held->count)
        PyBuffer_Release(&held->views[--held->count]);
}

/* NULL: it is no such buffer, and the slow way says why */
static const Py_buffer *hold(Held *held, PyObject *object, int flags)
{
    Py_buffer *view = &held->views[held->count];
    if (PyObject_GetBuffer(object, view, flags) != 0) {
        PyErr_Clear();
        return NULL;
    }
    held->count++;
    return view;
}

/* An array of 8-byte integers in the order of this machine; of its negative ones C thinks as of huge ones. */
static const uint64_t *hold_words(Held *held, PyObject *object, int dimensions, uint64_t *n, char *format)
{
    const Py_buffer *view = hold(held, object, PyBUF_ND | PyBUF_FORMAT);
    if (!view || view->itemsize != 8 || view->ndim != dimensions || !view->format || !view->format[0] ||
        view->format[1] || !strchr("lLqQ", view->format[0]) || (dimensions == 2 && view->shape[1] != 2))
        return NULL;
    *n = (uint64_t)view->shape[0];
    *format = view->format[0];
    return view->buf;
}

/* (data, offsets) of items; how many are given. 0: not the plain case */
static int hold_pieces(Held *held, PyObject *data, PyObject *offsets, const uint8_t **bytes, uint64_t *length,
                       const uint64_t **words, uint32_t *spans, uint64_t *n)
{
    char format;
    const Py_buffer *view = hold(held, data, PyBUF_SIMPLE);
    if (!view)
        return 0;
    *bytes = view->buf;
    *length = (uint64_t)view->len;
    *words = hold_words(held, offsets, 1, n, &format);
    *spans = 0;
    if (!*words && held->count && held->views[held->count - 1].obj == offsets) { /* a start and an end for each? */
        PyBuffer_Release(&held->views[--held->count]);
        *words = hold_words(held, offsets, 2, n, &format);
        *spans = 1;
    }
    if (!*words || (!*spans && !*n))
        return 0;
    *n -= !*spans;
    return 1;
}

static int hold_columns(Held *held, PyObject *const *args, sm_columns *in)
{
    uint64_t keys;
    char format;
    memset(in, 0, sizeof *in);
    if (!hold_pieces(held, args[1], args[2], &in->data, &in->data_bytes, &in->offsets, &in->spans, &in->n))
        return 0;
    if (args[0] == Py_None)
        return 1;
    if (PyTuple_Check(args[0])) {
        Py_ssize_t items = PyTuple_Size(args[0]);
        PyObject *type = items == 3 ? PyTuple_GetItem(args[0], 2) : (PyObject *)&PyBytes_Type;
        if ((items != 2 && items != 3) || (type != (PyObject *)&PyBytes_Type && type != (PyObject *)&PyUnicode_Type))
            return 0;
        in->key_kind = type == (PyObject *)&PyUnicode_Type ? SM_KEY_STR : SM_KEY_BYTES;
        return hold_pieces(held, PyTuple_GetItem(args[0], 0), PyTuple_GetItem(args[0], 1), &in->key_data,
                           &in->key_bytes, &in->key_offsets, &in->key_spans, &keys) &&
               keys == in->n;
    }
    in->key_kind = SM_KEY_INT;
    in->keys = hold_words(held, args[0], 1, &keys, &format);
    in->key_unsigned = in->keys && (format == 'L' || format == 'Q');
    return in->keys && keys == in->n;
}

/* What comes with the events: offsets of origins, partition and epoch of all; times; what is missing. None: not given. */
static int hold_more(Held *held, PyObject *const *args, sm_columns *in)
{
    uint64_t n = in->n;
    char format;
    if (args[0] != Py_None) {
        in->origins = hold_words(held, args[0], 1, &n, &format);
        unsigned long long row = PyLong_AsUnsignedLongLong(args[1]), epoch = PyLong_AsUnsignedLongLong(args[2]);
        if (PyErr_Occurred() || !in->origins || n != in->n || row > UINT32_MAX || epoch > UINT32_MAX) {
            PyErr_Clear();
            return 0;
        }
        in->partition = (uint32_t)row;
        in->epoch = (uint32_t)epoch;
        for (uint64_t i = 0; i < n; i++)
            if (in->origins[i] > INT64_MAX || (i && in->origins[i] <= in->origins[i - 1]))
                return 0;
    }
    if (args[3] != Py_None) {
        in->times = (const int64_t *)hold_words(held, args[3], 1, &n, &format);
        if (!in->times || n != in->n)
            return 0;
    }
    if (args[4] != Py_None) {
        const Py_buffer *view = hold(held, args[4], PyBUF_ND | PyBUF_FORMAT);
        if (!view || view->itemsize != 1 || view->ndim != 1 || !view->format || view->format[0] != '?' ||
            (uint64_t)view->shape[0] != in->n)
            return 0;
        in->missing = view->buf;
    }
    return 1;
}

/*
 * push_columns(keys, data, offsets) and perhaps (origins, partition, epoch, times, missing), keys also as (data, offsets) or
 * (data, offsets, str): how many events there are when all is accepted; None when it is not the plain case (other types, an
 * event that is not well-formed, so many events that the interpreter's lock is better given up) and nothing was done; else
 * the state above.
 */
static PyObject *pusher_push_columns(Pusher *self, PyObject *const *args, Py_ssize_t nargs)
{
    Held held = {.count = 0};
    sm_columns in;
    sm_cursor c;
    c.chunk = c.next = c.accepted = c.pending_count = c.shard = 0;
    if (nargs != 3 && nargs != 8)
        return PyErr_Format(PyExc_TypeError, "push_columns takes keys, data and offsets, and what comes with them");
    PyObject *owner;
    sm_sender *s = sender_of(self, &owner);
    if (!s || !hold_columns(&held, args, &in) || in.n > SM_CHUNK || (nargs == 8 && !hold_more(&held, args + 3, &in))) {
        let_go(&held);
        Py_XDECREF(owner);
        Py_RETURN_NONE;
    }
    int status = SM_FORKED;
    if (lock_sender(s)) {
        status = sm_push_columns_locked(s, &in, &c);
        sm_sender_unlock(s);
    }
    let_go(&held);
    Py_XDECREF(owner);
    if (likely(status == SM_OK))
        return PyLong_FromUnsignedLongLong(in.n);
    if (status == SM_TOO_LARGE)
        Py_RETURN_NONE;
    return cursor_state(status, &c);
}

static PyObject *pusher_attach(Pusher *self, PyObject *const *args, Py_ssize_t n)
{
    unsigned long long address = n == 2 ? PyLong_AsUnsignedLongLong(args[0]) : 0;
    if (!address)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "attach takes an address and its owner");
    PyObject *before;
    Py_INCREF(args[1]);
    SM_LOCKED(self, {
        before = self->owner;
        self->owner = args[1];
        self->sender = (sm_sender *)(uintptr_t)address;
    });
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *pusher_detach(Pusher *self, PyObject *ignored)
{
    PyObject *before;
    (void)ignored;
    SM_LOCKED(self, {
        before = self->owner;
        self->sender = NULL;
        self->owner = NULL;
    });
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *pusher_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *slow;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "O", &slow))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Pusher *self = (Pusher *)allocate(type, 0);
    if (!self)
        return NULL;
    self->sender = NULL;
    self->owner = NULL;
    Py_INCREF(slow);
    self->slow = slow;
    return (PyObject *)self;
}

static int pusher_traverse(Pusher *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->slow);
    return 0;
}

static int pusher_clear(Pusher *self)
{
    self->sender = NULL;
    Py_CLEAR(self->owner);
    Py_CLEAR(self->slow);
    return 0;
}

static void pusher_dealloc(Pusher *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    pusher_clear(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef pusher_methods[] = {
    {"push", (PyCFunction)(void (*)(void))pusher_push, METH_FASTCALL | METH_KEYWORDS,
     "push(key, payload): one event; True when accepted"},
    {"push_many", (PyCFunction)(void (*)(void))pusher_push_many, METH_FASTCALL,
     "push_many(keys, payloads): None, or what is left to do"},
    {"push_columns", (PyCFunction)(void (*)(void))pusher_push_columns, METH_FASTCALL,
     "push_columns(keys, data, offsets, ...): how many, None, or what is left to do"},
    {"offer", (PyCFunction)(void (*)(void))pusher_offer, METH_FASTCALL,
     "offer(key, payload): True when accepted; else False, and nothing was done"},
    {"attach", (PyCFunction)(void (*)(void))pusher_attach, METH_FASTCALL,
     "attach(address of a sm_sender, who keeps its memory)"},
    {"detach", (PyCFunction)pusher_detach, METH_NOARGS, "from now on everything takes the slow way"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot pusher_slots[] = {
    {Py_tp_new, pusher_new},     {Py_tp_dealloc, pusher_dealloc}, {Py_tp_traverse, pusher_traverse},
    {Py_tp_clear, pusher_clear}, {Py_tp_methods, pusher_methods}, {0, NULL},
};

static PyType_Spec pusher_spec = {"shardmem._native.Pusher", sizeof(Pusher), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                  pusher_slots};

/* called through cffi, so without the interpreter's lock */
int sm_install_fastcalls(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *module = PyImport_AddModule("shardmem._native"); /* borrowed */
    PyObject *type = module ? PyType_FromSpec(&pusher_spec) : NULL;
    int status = type && PyObject_SetAttrString(module, "Pusher", type) == 0 && sm_add_decode(module) == SM_OK &&
                         sm_add_keyed(module) == SM_OK
                     ? SM_OK
                     : SM_UNREADY;
    if (status != SM_OK)
        PyErr_Clear();
    Py_XDECREF(type);
    PyGILState_Release(state);
    return status;
}
