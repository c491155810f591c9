//! Guests' images: both builds, and what tests and load need.

pub(crate) mod memcached;
pub(crate) mod mosquitto;
pub(crate) mod redis;
