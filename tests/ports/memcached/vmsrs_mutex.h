/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Mutexes that requests lock: a request that fails releases them. memcached.h includes this in place of pthread.h. */
#ifndef VMSRS_MUTEX_H
#define VMSRS_MUTEX_H

#include <pthread.h>
#include <vmsrs.h>

/* That of a worker's statistics: only its own thread writes them. */
struct no_mutex {
    char none;
};

static inline int no_mutex_init(struct no_mutex *mutex, const pthread_mutexattr_t *attributes) {
    (void)mutex;
    (void)attributes;
    return 0;
}

static inline int no_mutex(struct no_mutex *mutex) {
    (void)mutex;
    return 0;
}

static inline int request_mutex_init(vmsrs_mutex_t *mutex, const pthread_mutexattr_t *attributes) {
    (void)attributes;
    return vmsrs_mutex_init(mutex, NULL, NULL);
}

static inline int request_mutex_lock(vmsrs_mutex_t *mutex) {
    int code = vmsrs_mutex_lock(mutex);

    if (code != VMSRS_OK)
        vmsrs_fail(vmsrs_strerror(code));
    return 0;
}

#define BY_TYPE(mutex, requests, none, others) \
    _Generic((mutex), vmsrs_mutex_t * : requests, struct no_mutex * : none, default : others)
#define pthread_mutex_init(mutex, attributes) \
    BY_TYPE(mutex, request_mutex_init, no_mutex_init, pthread_mutex_init)(mutex, attributes)
#define pthread_mutex_lock(mutex) BY_TYPE(mutex, request_mutex_lock, no_mutex, pthread_mutex_lock)(mutex)
#define pthread_mutex_unlock(mutex) BY_TYPE(mutex, vmsrs_mutex_unlock, no_mutex, pthread_mutex_unlock)(mutex)

#endif
