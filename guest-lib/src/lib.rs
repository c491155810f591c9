//! Guest library of VMSRS: requests whose memory errors cost only themselves.
