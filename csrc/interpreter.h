/*
 * CPython, for the files that call it: include this before anything else. They keep to the limited API of 3.10, so that one
 * build serves every version since. An interpreter without the lock (free-threaded, 3.13 and later) has no limited API: there
 * they are built for that version alone, and lock each object that threads may share for as long as they look into it.
 */
#ifndef SHARDMEM_INTERPRETER_H
#define SHARDMEM_INTERPRETER_H

#include <pyconfig.h>
#ifndef Py_GIL_DISABLED
#define Py_LIMITED_API 0x030a0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
/* Where this thread has to wait for the other it gives the lock up, as it gives up the interpreter's elsewhere. */
#define SM_LOCKED(object, statement)                                                                                   \
    do {                                                                                                               \
        Py_BEGIN_CRITICAL_SECTION((PyObject *)(object));                                                               \
        statement;                                                                                                     \
        Py_END_CRITICAL_SECTION();                                                                                     \
    } while (0)
#define SM_LOCKED_BOTH(one, other, statement)                                                                          \
    do {                                                                                                               \
        Py_BEGIN_CRITICAL_SECTION2((PyObject *)(one), (PyObject *)(other));                                            \
        statement;                                                                                                     \
        Py_END_CRITICAL_SECTION2();                                                                                    \
    } while (0)
#else
#define SM_LOCKED(object, statement) statement
#define SM_LOCKED_BOTH(one, other, statement) statement
/*
 * The buffer protocol came into the limited API with 3.11; the functions and the struct are in every CPython since 3.0 and
 * have not changed.
 */
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
