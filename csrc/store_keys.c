/* role: none
 * Keys as the store of keyed state writes them, and the slots that they belong to.
 */
#include "interpreter.h"

#include "keyed.h"

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

/* text with lone surrogates, which C's plain way does not take, is written as the bytes that it stands for */
int sm_any_key(PyObject *key, sm_event *e, PyObject **held)
{
    *held = NULL;
    if (likely(sm_plain_key(key, e) && SM_META_KIND(e->meta) != SM_KEY_NONE))
        return 1;
    if (Py_TYPE(key) != &PyUnicode_Type) {
        PyErr_Format(Py_TYPE(key) == &PyLong_Type ? PyExc_ValueError : PyExc_TypeError,
                     "a key is int, str or bytes, and within its range; this is %R", key);
        return 0;
    }
    *held = PyUnicode_AsEncodedString(key, "utf-8", "surrogateescape");
    if (!*held)
        return 0;
    sm_plain_key(*held, e);
    e->meta = (uint32_t)SM_KEY_STR << 30 | SM_META_LENGTH(e->meta);
    return 1;
}

/* store_keys(keys: list, name: bytes, slots: int, base: int = 0): a list of bytes */
PyObject *sm_store_keys(PyObject *module, PyObject *args)
{
    PyObject *keys, *held;
    const char *name;
    Py_ssize_t name_bytes;
    unsigned int slots, base = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "Oy#I|I", &keys, &name, &name_bytes, &slots, &base))
        return NULL;
    if (!PyList_Check(keys))
        return PyErr_Format(PyExc_TypeError, "store_keys takes a list");
    Py_ssize_t n = PyList_Size(keys);
    PyObject *made = PyList_New(n);
    for (Py_ssize_t i = 0; made && i < n; i++) {
        sm_event e = {0};
        PyObject *one = NULL;
        if (sm_any_key(PyList_GetItem(keys, i), &e, &held))
            one = store_key(&e, slot_of_event(&e, slots, base), name, name_bytes);
        Py_XDECREF(held);
        if (one)
            PyList_SetItem(made, i, one);
        else
            Py_CLEAR(made);
    }
    return made;
}

/* slots_of_keys(keys: list, slots: int, base: int = 0): the slot of each, as the bytes of an array of uint32 */
PyObject *sm_slots_of_keys(PyObject *module, PyObject *args)
{
    PyObject *keys, *held;
    unsigned int slots, base = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OI|I", &keys, &slots, &base))
        return NULL;
    if (!PyList_Check(keys))
        return PyErr_Format(PyExc_TypeError, "slots_of_keys takes a list");
    Py_ssize_t n = PyList_Size(keys);
    PyObject *made = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(uint32_t));
    for (Py_ssize_t i = 0; made && i < n; i++) {
        sm_event e = {0};
        if (sm_any_key(PyList_GetItem(keys, i), &e, &held)) {
            uint32_t slot = slot_of_event(&e, slots, base);
            memcpy(PyBytes_AsString(made) + i * (Py_ssize_t)sizeof slot, &slot, sizeof slot);
        } else {
            Py_CLEAR(made);
        }
        Py_XDECREF(held);
    }
    return made;
}
