/*
 * Keys as Python objects and as frames carry them. For the files that include interpreter.h, and behind
 * it. Inline: a push is 60 ns.
 */
#ifndef SHARDMEM_OBJECTS_H
#define SHARDMEM_OBJECTS_H

#include "internal.h"

/* 1: e->key... filled. 0: not a plain key, or an error that the slow way will repeat and explain */
static inline int sm_plain_key(PyObject *key, sm_event *e)
{
    PyTypeObject *type = Py_TYPE(key);
    if (type == &PyLong_Type) {
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(key, &overflow);
        e->meta = (uint32_t)SM_KEY_INT << 30;
        e->key = (uint64_t)value;
        if (likely(!overflow))
            return 1;
        e->key = PyLong_AsUnsignedLongLong(key);
        e->meta |= SM_META_UNSIGNED;
        if (overflow > 0 && !PyErr_Occurred())
            return 1;
        PyErr_Clear();
        return 0;
    }
    Py_ssize_t length;
    uint32_t kind;
    if (type == &PyUnicode_Type) {
        kind = SM_KEY_STR;
        e->key_bytes = (const uint8_t *)PyUnicode_AsUTF8AndSize(key, &length);
        if (!e->key_bytes) {
            PyErr_Clear();
            return 0;
        }
    } else if (type == &PyBytes_Type) {
        kind = SM_KEY_BYTES;
        char *bytes;
        PyBytes_AsStringAndSize(key, &bytes, &length);
        e->key_bytes = (const uint8_t *)bytes;
    } else {
        e->meta = e->key = 0;
        return key == Py_None;
    }
    if ((uint64_t)length >= SM_META_MISSING)
        return 0;
    e->key = sm_hash_bytes(e->key_bytes, (uint64_t)length);
    e->meta = kind << 30 | (uint32_t)length;
    return 1;
}

static inline PyObject *sm_key_object(const sm_index *index, const uint8_t *bytes)
{
    uint32_t length = SM_META_LENGTH(index->meta);
    switch (SM_META_KIND(index->meta)) {
    case SM_KEY_INT:
        return index->meta & SM_META_UNSIGNED ? PyLong_FromUnsignedLongLong(index->key)
                                              : PyLong_FromLongLong((long long)index->key);
    case SM_KEY_BYTES:
        return PyBytes_FromStringAndSize((const char *)bytes, length);
    case SM_KEY_STR:
        return PyUnicode_DecodeUTF8((const char *)bytes, length, "surrogateescape");
    default:
        Py_RETURN_NONE;
    }
}

/* bytes, or None for a tombstone; a new reference */
static inline PyObject *sm_payload_object(const sm_index *index, const uint8_t *bytes, uint32_t length)
{
    if (likely(!(index->meta & SM_META_MISSING)))
        return PyBytes_FromStringAndSize((const char *)bytes, length);
    Py_RETURN_NONE;
}

/* One entry of a span's index, checked; `from` is where the one before it ended. 0: the frame contradicts itself, and
 * BufferError is set. */
static inline int sm_entry_is_sound(const sm_span *span, uint32_t i, const sm_index *entry, uint32_t from)
{
    if (likely(entry->end >= from && entry->end <= span->bytes_length &&
               SM_META_LENGTH(entry->meta) <= entry->end - from))
        return 1;
    PyErr_Format(PyExc_BufferError, "frame at %llu of seat %u: entry %u ends at %u, after %u, of %u",
                 (unsigned long long)span->position, (unsigned)span->seat, (unsigned)i, (unsigned)entry->end,
                 (unsigned)from, (unsigned)span->bytes_length);
    return 0;
}

int sm_add_decode(PyObject *module); /* decode.c */
int sm_add_keyed(PyObject *module);  /* keyed.c */

#endif
