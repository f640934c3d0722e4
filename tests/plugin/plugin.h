/* What a host and the plugin of these tests know of each other. The host need not know the library at all. */
#ifndef TESTS_PLUGIN_H
#define TESTS_PLUGIN_H

/* What a host that uses the library itself lends to the plugin. */
struct plugin_host {
    unsigned long round; /* 1, 2, ... */
    void *obj;           /* an object of the host's that outlives the plugin */
    void *signal;        /* wr_signal */
    void *queue;         /* wr_queue, with a thread */
    void *dict;          /* wr_value_dict */
};

struct plugin_api {
    int (*start)(const struct plugin_host *host); /* NULL: it does not. 0, or a line number */
    int (*use)(unsigned seed);                    /* any number of threads at once. 0, or a line number */
    int (*stop)(void);                            /* after all calls of use. 0, or a line number */
    /* [owned] a wr_weak of an object that dies; it may outlive the plugin. *@type: for free() after it. */
    void *(*weak_that_stays)(void **type);
    /* Wrong on purpose: */
    void *(*weak)(void);      /* [owned] a wr_weak of an object that dies */
    void (*watch)(void *obj); /* watches the host's object, and keeps no handle */
    void (*keep)(void);       /* keeps an object */
};

/* The symbol "plugin_api" of the plugin is one of these. */

#endif
