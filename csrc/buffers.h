/*
 * The buffer protocol for files that keep to CPython's limited API of 3.10. It came into that API with 3.11; the functions
 * and the struct are in every CPython since 3.0 and have not changed, so they are declared here. Include after Python.h.
 */
#ifndef SHARDMEM_BUFFERS_H
#define SHARDMEM_BUFFERS_H

#if Py_LIMITED_API + 0 < 0x030b0000
typedef struct {
    void *buf;
    PyObject *obj;
    Py_ssize_t len, itemsize;
    int readonly, ndim;
    char *format;
    Py_ssize_t *shape, *strides, *suboffsets;
    void *internal;
} Py_buffer;

#define PyBUF_SIMPLE 0
#define PyBUF_WRITABLE 0x0001
#define PyBUF_FORMAT 0x0004
#define PyBUF_ND 0x0008 /* without strides: contiguous, or it is refused */

PyAPI_FUNC(int) PyObject_GetBuffer(PyObject *object, Py_buffer *view, int flags);
PyAPI_FUNC(void) PyBuffer_Release(Py_buffer *view);
#endif

#endif
