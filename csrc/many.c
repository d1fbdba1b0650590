/* role: none
 * Keyed state by columns: the values of many keys, those of a batch, an array or a list, are read, added to or written
 * without a Python object for each event. A key is found among `entries` by what its frame says of it; the first time that
 * it is asked for it goes the way of a single one, through Python.
 */
#include "interpreter.h"

#include <stdlib.h>

#include "keyed.h"

#define LEAST_ROOM 64

/* ---- entries ------------------------------------------------------------------------------------------------------ */

void sm_forget_entries(StateMap *self)
{
    Entry *entries = self->entries;
    uint32_t room = self->room;
    self->entries = NULL;
    self->room = self->used = self->left = 0;
    for (uint32_t i = 0; i < room; i++)
        Py_XDECREF(entries[i].cell);
    free(entries);
}

static int is_text(PyObject *key, const uint8_t *bytes, uint32_t length)
{
    Py_ssize_t own;
    char *text;
    if (Py_TYPE(key) == &PyBytes_Type) {
        PyBytes_AsStringAndSize(key, &text, &own);
        return own == (Py_ssize_t)length && !memcmp(text, bytes, length);
    }
    const char *plain = PyUnicode_AsUTF8AndSize(key, &own);
    if (likely(plain != NULL))
        return own == (Py_ssize_t)length && !memcmp(plain, bytes, length);
    PyErr_Clear(); /* lone surrogates */
    PyObject *encoded = PyUnicode_AsEncodedString(key, "utf-8", "surrogateescape");
    if (!encoded) {
        PyErr_Clear();
        return 0;
    }
    PyBytes_AsStringAndSize(encoded, &text, &own);
    int is_same = own == (Py_ssize_t)length && !memcmp(text, bytes, length);
    Py_DECREF(encoded);
    return is_same;
}

static inline uint32_t first_place(uint64_t word, uint32_t room)
{
    return (uint32_t)(word * UINT64_C(0x9E3779B97F4A7C15) >> 32) & (room - 1);
}

/* the one of this key, or the free one where it belongs; there is always a free one */
static inline Entry *entry_of(const StateMap *self, uint64_t word, uint32_t meta, const uint8_t *bytes)
{
    for (uint32_t at = first_place(word, self->room);; at = (at + 1) & (self->room - 1)) {
        Entry *e = &self->entries[at];
        if (!e->cell || (e->word == word && e->meta == meta &&
                         (SM_META_KIND(meta) == SM_KEY_INT || is_text(e->cell->key, bytes, SM_META_LENGTH(meta)))))
            return e;
    }
}

static int make_room(StateMap *self)
{
    if (likely(self->used < self->room / 4 * 3))
        return 0;
    uint32_t before = self->room, room = before ? 2 * before : LEAST_ROOM;
    Entry *old = self->entries, *made = calloc(room, sizeof *made);
    if (!made) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = 0; i < before; i++) {
        if (!old[i].cell)
            continue;
        uint32_t at = first_place(old[i].word, room);
        while (made[at].cell)
            at = (at + 1) & (room - 1);
        made[at] = old[i];
    }
    self->entries = made;
    self->room = room;
    free(old);
    return 0;
}

/* ---- the cells of a column of keys --------------------------------------------------------------------------------- */

/* cells: references. fresh: those of keys that have no value yet: nobody else finds them, until they are published. */
typedef struct {
    StateMap *map;
    PyObject *fresh, *is_write; /* is_write: no value is needed of a key that has none */
    PyObject *absent;           /* NULL, or a list that takes keys that are not live; None is the cell of those */
    Cell **cells;
    Py_ssize_t count, room;
} Lookup;

/* The first time. key: exactly int, str or bytes, or None; a reference that is taken. The cell is borrowed. */
static Cell *find_slowly(Lookup *l, uint64_t word, uint32_t meta, const uint8_t *bytes, PyObject *key)
{
    StateMap *map = l->map;
    PyObject *cell = key ? PyDict_GetItemWithError(map->live, key) : NULL;
    Py_XINCREF(cell);
    if (l->absent && key && !cell && !PyErr_Occurred()) {
        int status = PyList_Append(l->absent, key);
        Py_DECREF(key);
        return status < 0 ? NULL : (Cell *)Py_None;
    }
    if (key && !cell && !PyErr_Occurred()) {
        cell = PyObject_CallMethod((PyObject *)map, "_cell", "(OO)", key, l->is_write);
        if (cell && PyDict_GetItemWithError(map->live, key) != cell && PyList_Append(l->fresh, cell) < 0)
            Py_CLEAR(cell);
    }
    Py_XDECREF(key);
    if (!cell || Py_TYPE(cell) != sm_cell_type || make_room(map) < 0) {
        Py_XDECREF(cell);
        return PyErr_Occurred() ? NULL : (Cell *)PyErr_Format(PyExc_TypeError, "state keeps cells");
    }
    Entry *e = entry_of(map, word, meta, bytes);
    PyObject *before = (PyObject *)e->cell;
    map->used += !before;
    *e = (Entry){word, meta, (Cell *)cell};
    Py_XDECREF(before);
    return (Cell *)cell;
}

static inline Cell *find(const StateMap *map, uint64_t word, uint32_t meta, const uint8_t *bytes)
{
    Cell *cell = likely(map->room) ? entry_of(map, word, meta, bytes)->cell : NULL;
    return cell && likely(!cell->gone) ? cell : NULL;
}

static inline int add_cell(Lookup *l, Cell *cell)
{
    if (unlikely(!cell))
        return -1;
    Py_INCREF(cell);
    l->cells[l->count++] = cell;
    return 0;
}

static int make_cells(Lookup *l, uint64_t rows)
{
    l->room = (Py_ssize_t)rows;
    l->cells = malloc(sizeof *l->cells * (rows + 1));
    if (l->cells)
        return 0;
    PyErr_NoMemory();
    return -1;
}

static int find_of_batch(Lookup *l, PyObject *address)
{
    const sm_batch *b = (const sm_batch *)(uintptr_t)PyLong_AsUnsignedLongLong(address);
    if (PyErr_Occurred() || make_cells(l, b->rows) < 0)
        return -1;
    for (uint32_t s = 0; s < b->spans; s++) {
        const sm_span *span = &b->span[s];
        const sm_index *index = (const sm_index *)span->rows;
        uint32_t from = span->first ? index[-1].end : 0;
        for (uint32_t i = 0; i < span->count && l->count < l->room; i++) {
            sm_index entry = index[i]; /* one read: the check and the use must see the same values */
            if (!sm_entry_is_sound(span, i, &entry, from))
                return -1;
            const uint8_t *bytes = span->bytes + from;
            uint32_t meta = entry.meta & ~SM_META_MISSING;
            Cell *cell = find(l->map, entry.key, meta, bytes);
            if (unlikely(!cell))
                cell = find_slowly(l, entry.key, meta, bytes, sm_key_object(&entry, bytes));
            if (add_cell(l, cell) < 0)
                return -1;
            from = entry.end;
        }
    }
    return 0;
}

static int find_of_numbers(Lookup *l, PyObject *array, int is_unsigned)
{
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_SIMPLE) < 0)
        return -1;
    const uint64_t *words = view.buf;
    const uint8_t no_text[1] = {0};
    Py_ssize_t n = view.len / (Py_ssize_t)sizeof *words;
    int status = make_cells(l, (uint64_t)n);
    for (Py_ssize_t i = 0; status == 0 && i < n; i++) {
        sm_index entry = {.key = words[i], .meta = (uint32_t)SM_KEY_INT << 30};
        if (is_unsigned && entry.key >> 63)
            entry.meta |= SM_META_UNSIGNED;
        Cell *cell = find(l->map, entry.key, entry.meta, no_text);
        if (unlikely(!cell))
            cell = find_slowly(l, entry.key, entry.meta, no_text, sm_key_object(&entry, no_text));
        status = add_cell(l, cell);
    }
    PyBuffer_Release(&view);
    return status;
}

/* keys: each exactly int, str or bytes, or what no key can be */
static int find_of_list(Lookup *l, PyObject *keys)
{
    Py_ssize_t n = PyList_Size(keys);
    if (n < 0 || make_cells(l, (uint64_t)n) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < n && i < PyList_Size(keys); i++) {
        PyObject *key = PyList_GetItem(keys, i), *held = NULL;
        sm_event e = {0};
        Py_INCREF(key);
        int status = sm_any_key(key, &e, &held) ? 0 : -1;
        if (status == 0) {
            Cell *cell = find(l->map, e.key, e.meta, e.key_bytes);
            if (unlikely(!cell)) {
                Py_INCREF(key);
                cell = find_slowly(l, e.key, e.meta, e.key_bytes, key);
            }
            status = add_cell(l, cell);
        }
        Py_XDECREF(held);
        Py_DECREF(key);
        if (status < 0)
            return -1;
    }
    return 0;
}

static int prepare(Lookup *l, StateMap *map, int is_write)
{
    *l = (Lookup){.map = map, .fresh = PyList_New(0), .is_write = is_write ? Py_True : Py_False};
    if (map->left > map->used / 2)
        sm_forget_entries(map);
    return l->fresh ? 0 : -1;
}

/* source: the address of a batch of events, a pair of an array of 64-bit integers and whether they are unsigned, or a list
 * of keys */
static int find_all(Lookup *l, PyObject *source)
{
    if (PyLong_Check(source))
        return find_of_batch(l, source);
    if (PyList_Check(source))
        return find_of_list(l, source);
    if (PyTuple_Check(source) && PyTuple_Size(source) == 2)
        return find_of_numbers(l, PyTuple_GetItem(source, 0), PyObject_IsTrue(PyTuple_GetItem(source, 1)));
    return PyErr_Format(PyExc_TypeError, "%R is no column of keys", source) ? 0 : -1;
}

/* expected: how many keys there are; -1: any number */
static int look_up(Lookup *l, StateMap *map, PyObject *source, int is_write, Py_ssize_t expected)
{
    int status = prepare(l, map, is_write) == 0 ? find_all(l, source) : -1;
    if (status == 0 && expected >= 0 && l->count != expected) {
        PyErr_Format(PyExc_ValueError, "%zd values for %zd keys", expected, l->count);
        status = -1;
    }
    return status;
}

/* is_done: keys that had no value have one now. Otherwise nothing has happened. */
static int end_lookup(Lookup *l, int is_done)
{
    int status = 0;
    Py_ssize_t n = l->fresh ? PyList_Size(l->fresh) : 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        Cell *cell = (Cell *)PyList_GetItem(l->fresh, i);
        if (is_done && status == 0) {
            status = PyDict_SetItem(l->map->live, cell->key, (PyObject *)cell);
        } else if (!cell->gone) {
            cell->gone = 1;
            l->map->left++;
        }
    }
    for (Py_ssize_t i = 0; i < l->count; i++)
        if (is_done && status == 0 && likely(!l->cells[i]->gone))
            status = sm_mark(l->map, l->cells[i]);
    for (Py_ssize_t i = 0; i < l->count; i++)
        Py_DECREF(l->cells[i]);
    free(l->cells);
    Py_XDECREF(l->fresh);
    return status;
}

/* absent(source): the keys that are not live, one perhaps several times. Nothing is read for them. */
PyObject *sm_absent(StateMap *self, PyObject *source)
{
    Lookup l;
    int status = -1;
    PyObject *absent = PyList_New(0);
    if (absent && prepare(&l, self, 0) == 0) {
        l.absent = absent;
        status = find_all(&l, source);
        end_lookup(&l, 0);
    }
    if (status < 0)
        Py_CLEAR(absent);
    return absent;
}

/* ---- what is done with them ---------------------------------------------------------------------------------------- */

static int is_of_reals(const StateMap *self) { return self->plain == (PyObject *)&PyFloat_Type; }

static int is_of_wholes(const StateMap *self) { return self->plain == (PyObject *)&PyLong_Type; }

/* 1: `number` is the value. 0: it does not fit */
static inline int make_number(Cell *cell, int is_real)
{
    if (likely(!cell->value))
        return 1;
    int overflow = 0;
    if (is_real)
        cell->number.real = PyFloat_AsDouble(cell->value);
    else
        cell->number.whole = PyLong_AsLongLongAndOverflow(cell->value, &overflow);
    cell->is_real = (char)is_real;
    if (unlikely(PyErr_Occurred())) /* a subclass of float may do anything */
        PyErr_Clear();
    return !overflow;
}

static inline void drop_object(Cell *cell)
{
    PyObject *object = cell->value;
    cell->value = NULL;
    Py_XDECREF(object);
}

/* 0: one of the sums does not fit, and all are what they were */
static int add_wholes(Lookup *l, const int64_t *amounts)
{
    for (Py_ssize_t i = 0; i < l->count; i++)
        if (unlikely(!make_number(l->cells[i], 0)))
            return 0;
    for (Py_ssize_t i = 0; i < l->count; i++) {
        int64_t *sum = &l->cells[i]->number.whole;
        if (unlikely(__builtin_add_overflow(*sum, amounts[i], sum))) {
            for (; i >= 0; i--)
                l->cells[i]->number.whole = (int64_t)((uint64_t)l->cells[i]->number.whole - (uint64_t)amounts[i]);
            return 0;
        }
    }
    for (Py_ssize_t i = 0; i < l->count; i++)
        drop_object(l->cells[i]);
    return 1;
}

static void add_reals(Lookup *l, const double *amounts)
{
    for (Py_ssize_t i = 0; i < l->count; i++) {
        make_number(l->cells[i], 1);
        drop_object(l->cells[i]);
        l->cells[i]->number.real += amounts[i];
    }
}

static PyObject *answer(int status, int is_done)
{
    if (status < 0)
        return NULL;
    PyObject *said = is_done ? Py_True : Py_False;
    Py_INCREF(said);
    return said;
}

/* add_each(source, amounts): an array of int64, or of float64 in a map of float. False: it has to be done one by one, and
 * nothing was done */
PyObject *sm_add_each(StateMap *self, PyObject *const *args, Py_ssize_t n)
{
    Py_buffer view;
    Lookup l;
    if (n != 2 || !(is_of_reals(self) || is_of_wholes(self)))
        return PyErr_Format(PyExc_TypeError, "add_each takes keys and amounts, of numbers");
    if (PyObject_GetBuffer(args[1], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int status = look_up(&l, self, args[0], 0, view.len / 8), is_done = status == 0;
    if (is_done && is_of_reals(self))
        add_reals(&l, view.buf);
    else if (is_done)
        is_done = add_wholes(&l, view.buf);
    if (end_lookup(&l, is_done) < 0)
        status = -1;
    PyBuffer_Release(&view);
    return answer(status, is_done);
}

/* get_each(source, out): into an array of int64 or float64. False: one does not fit. */
PyObject *sm_get_each(StateMap *self, PyObject *const *args, Py_ssize_t n)
{
    Lookup l;
    PyObject *list = NULL;
    int status, is_done = 1;
    if (n == 1) {
        status = look_up(&l, self, args[0], 0, -1);
        list = status == 0 ? PyList_New(l.count) : NULL;
        for (Py_ssize_t i = 0; list && i < l.count; i++) {
            PyObject *value = sm_cell_value(l.cells[i]);
            Py_XINCREF(value);
            if (value)
                PyList_SetItem(list, i, value);
            else
                Py_CLEAR(list);
        }
        end_lookup(&l, 0);
        return list;
    }
    Py_buffer view;
    if (n != 2 || !(is_of_reals(self) || is_of_wholes(self)))
        return PyErr_Format(PyExc_TypeError, "get_each takes keys, and where numbers are to go");
    if (PyObject_GetBuffer(args[1], &view, PyBUF_WRITABLE) < 0)
        return NULL;
    status = look_up(&l, self, args[0], 0, view.len / 8);
    for (Py_ssize_t i = 0; status == 0 && is_done && i < l.count; i++) {
        is_done = make_number(l.cells[i], is_of_reals(self));
        ((int64_t *)view.buf)[i] = l.cells[i]->number.whole;
    }
    end_lookup(&l, 0);
    PyBuffer_Release(&view);
    return answer(status, is_done);
}

/* set_each(source, values): an array as of add_each, or a list. False: one is not of the declared type, and nothing was
 * done */
PyObject *sm_set_each(StateMap *self, PyObject *const *args, Py_ssize_t n)
{
    Py_buffer view = {0};
    Lookup l;
    if (n != 2)
        return PyErr_Format(PyExc_TypeError, "set_each takes keys and values");
    int is_list = PyList_Check(args[1]), is_done = 1;
    Py_ssize_t count = is_list ? PyList_Size(args[1]) : 0;
    for (Py_ssize_t i = 0; i < count; i++)
        if (!sm_is_plain_value(self, PyList_GetItem(args[1], i)))
            Py_RETURN_FALSE;
    if (!is_list && PyObject_GetBuffer(args[1], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int status = look_up(&l, self, args[0], 1, is_list ? count : view.len / 8);
    is_done = status == 0;
    for (Py_ssize_t i = 0; is_done && i < l.count; i++) {
        Cell *cell = l.cells[i];
        PyObject *before = cell->value, *value = is_list ? PyList_GetItem(args[1], i) : NULL;
        if (!is_list) {
            cell->number.whole = ((const int64_t *)view.buf)[i];
            cell->is_real = (char)is_of_reals(self);
        }
        Py_XINCREF(value);
        cell->value = value;
        Py_XDECREF(before);
    }
    if (end_lookup(&l, is_done) < 0)
        status = -1;
    if (!is_list)
        PyBuffer_Release(&view);
    return answer(status, is_done);
}
