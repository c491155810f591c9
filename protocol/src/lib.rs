//! Wire structures, ioctl ABI and constants shared by the VMSRS host, driver and guest library.
