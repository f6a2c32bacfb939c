/* ff_python_heap.c: an immortal heap (PEP 683).
 *
 * A child writes to an object by merely using it: the reference count is in the object, and the kernel
 * copies the page. What is immortal is not counted: 3.12 and later tell it by the highest of the lower 32
 * bits of the count. Builds without a GIL count otherwise and are left alone.
 */
#include <Python.h>

#include <errno.h>
#include <stdlib.h>

#include "ff_abi.h"

#if !defined(Py_GIL_DISABLED) && UINTPTR_MAX > UINT32_MAX && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

/* Objects that are reachable only through what the collector does not track. */
struct pending {
    PyObject **objects;
    size_t count;
    size_t capacity;
    size_t marked;
    uint32_t immortal; /* the count that CPython itself gives to what is immortal */
};

static int make_immortal(PyObject *object, struct pending *pending)
{
    uint32_t *count = (uint32_t *)object;

    if ((int32_t)*count < 0)
        return 0;
    *count = pending->immortal;
    pending->marked++;
    return 1;
}

static int push(struct pending *pending, PyObject *object)
{
    if (pending->count == pending->capacity) {
        size_t capacity = pending->capacity ? 2 * pending->capacity : 1024;
        PyObject **objects = realloc(pending->objects, capacity * sizeof(PyObject *));

        if (objects == NULL)
            return -1;
        pending->objects = objects;
        pending->capacity = capacity;
    }
    pending->objects[pending->count++] = object;
    return 0;
}

/* A visitor for tp_traverse. What the collector tracks has its own turn; the rest is followed from here. */
static int visit(PyObject *object, void *arg)
{
    struct pending *pending = arg;

    if (!make_immortal(object, pending))
        return 0;
    return PyObject_GC_IsTracked(object) ? 0 : push(pending, object);
}

static int visit_referents(PyObject *object, struct pending *pending)
{
    PyTypeObject *type = Py_TYPE(object);
    traverseproc traverse;
    inquiry is_gc;

    if (!(PyType_GetFlags(type) & Py_TPFLAGS_HAVE_GC))
        return 0;
    traverse = (traverseproc)PyType_GetSlot(type, Py_tp_traverse);
    is_gc = (inquiry)PyType_GetSlot(type, Py_tp_is_gc);
    if (traverse == NULL || (is_gc != NULL && !is_gc(object)))
        return 0;
    return traverse(object, visit, pending);
}

/* Code objects hold others and have no tp_traverse. Other types have no such attributes. */
static int visit_code(PyObject *object, PyObject *code_type, struct pending *pending)
{
    static const char *const parts[] = {"co_consts",    "co_names",          "co_name", "co_qualname",
                                        "co_linetable", "co_exceptiontable", NULL};

    if ((PyObject *)Py_TYPE(object) != code_type)
        return 0;
    for (const char *const *part = parts; *part != NULL; part++) {
        PyObject *value = PyObject_GetAttrString(object, *part);
        int error;

        if (value == NULL)
            return -1;
        error = visit(value, pending);
        Py_DECREF(value);
        if (error < 0)
            return error;
    }
    return 0;
}

static int follow_pending(PyObject *code_type, struct pending *pending)
{
    while (pending->count > 0) {
        PyObject *object = pending->objects[--pending->count];

        if (visit_referents(object, pending) < 0 || visit_code(object, code_type, pending) < 0)
            return -1;
    }
    return 0;
}

static int immortalize_all(PyObject *tracked, PyObject *code_type, struct pending *pending)
{
    Py_ssize_t count = PyList_Size(tracked);

    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *object = PyList_GetItem(tracked, i);

        make_immortal(object, pending);
        if (visit_referents(object, pending) < 0 || follow_pending(code_type, pending) < 0)
            return -1;
    }
    return 0;
}

static PyObject *get_attribute(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *attribute = module == NULL ? NULL : PyObject_GetAttrString(module, name);

    Py_XDECREF(module);
    return attribute;
}

long long ff_python_immortalize(uint32_t count)
{
    PyGILState_STATE state = PyGILState_Ensure();
    struct pending pending = {.immortal = count};
    PyObject *get_objects = get_attribute("gc", "get_objects");
    PyObject *code_type = get_attribute("types", "CodeType");
    PyObject *tracked = get_objects == NULL ? NULL : PyObject_CallObject(get_objects, NULL);
    int error = -1;

    if (tracked != NULL && code_type != NULL)
        error = immortalize_all(tracked, code_type, &pending);
    PyErr_Clear();
    free(pending.objects);
    Py_XDECREF(tracked);
    Py_XDECREF(code_type);
    Py_XDECREF(get_objects);
    PyGILState_Release(state);
    return error < 0 ? -ENOMEM : (long long)pending.marked;
}

#else

long long ff_python_immortalize(uint32_t count)
{
    (void)count;
    return -ENOSYS;
}

#endif
