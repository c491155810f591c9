// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Values, keys and tables: which are the keyspace's, and which are not. */
#include "vmsrs_keyspace.h"

/* So old is what the time of a value's last access may be. */
enum { TOUCH_SECONDS = 10 };

void *port_zmalloc_outside(size_t size) {
    PORT_OUTSIDE;
    return zmalloc(size);
}

dict *port_dict_outside(dictType *type) {
    PORT_OUTSIDE;
    return dictCreate(type);
}

bool port_can_write(const void *block) {
    return inside || !vmsrs_is_domain_address(block);
}

robj *port_own(robj *value) {
    if (!inside || outside || vmsrs_is_domain_address(value) || value->refcount == OBJ_SHARED_REFCOUNT || value->type != OBJ_STRING)
        return value;
    if (value->encoding == OBJ_ENCODING_INT)
        return createStringObjectFromLongLongForValue((long)value->ptr);
    return tryObjectEncoding(createStringObject(value->ptr, sdslen(value->ptr)));
}

robj *port_key(robj *key) {
    return vmsrs_is_domain_address(key) ? createStringObject(key->ptr, sdslen(key->ptr)) : key;
}

void port_touch(robj *value, unsigned int clock) {
    unsigned int since = (clock - value->lru) & LRU_CLOCK_MAX;

    if (inside && since >= TOUCH_SECONDS * 1000 / LRU_CLOCK_RESOLUTION)
        value->lru = clock;
}
