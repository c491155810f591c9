// SPDX-License-Identifier: GPL-2.0
/*
 * Protection keys: which one entries have, and what the PKRU register of the calling thread says
 * about them.
 *
 * The register is the thread's own in the kernel too, and stays as it is set here.
 */
#include <linux/mm.h>

#include <asm/cpufeature.h>
#include <asm/pkru.h>

#include "vmsrs.h"

static u32 key_bits(u32 key)
{
	return (PKRU_AD_BIT | PKRU_WD_BIT) << (key * PKRU_BITS_PER_PKEY);
}

/**
 * vmsrs_key_prot() - set the protection key in the protection of an entry
 * @prot: the protection
 * @key: the key, or 0
 */
pgprot_t vmsrs_key_prot(pgprot_t prot, u32 key)
{
	if (!key || !cpu_feature_enabled(X86_FEATURE_OSPKE))
		return prot;
	return __pgprot((pgprot_val(prot) & ~_PAGE_PKEY_MASK) |
			(pgprotval_t)key << _PAGE_BIT_PKEY_BIT0);
}

/**
 * vmsrs_key_open() - let the calling thread read and write with a key
 * @key: the key, or 0
 */
void vmsrs_key_open(u32 key)
{
	if (key)
		write_pkru(read_pkru() & ~key_bits(key));
}

/**
 * vmsrs_key_stop_writes() - let the calling thread only read with a key
 * @key: the key
 */
void vmsrs_key_stop_writes(u32 key)
{
	write_pkru((read_pkru() & ~key_bits(key)) | PKRU_WD_BIT << (key * PKRU_BITS_PER_PKEY));
}

/**
 * vmsrs_keys_open() - tell with which keys the calling thread may write
 * @keys: the keys in question, vmsrs_key_mask() of each
 *
 * Return: those of them.
 */
u32 vmsrs_keys_open(u32 keys)
{
	u32 pkru;

	if (!keys || !cpu_feature_enabled(X86_FEATURE_OSPKE))
		return 0;
	pkru = read_pkru();
	return keys & ~(pkru | pkru >> 1);
}
