/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* A C library that somebody else has written. BUG: a byte without a code crashes it. */
#include <stddef.h>
#include <string.h>

static const char *const codes[256] = {
	[' '] = "/",	 ['0'] = "-----", ['1'] = ".----", ['2'] = "..---",
	['3'] = "...--", ['4'] = "....-", ['5'] = ".....", ['6'] = "-....",
	['7'] = "--...", ['8'] = "---..", ['9'] = "----.", ['a'] = ".-",
	['b'] = "-...",	 ['c'] = "-.-.",  ['d'] = "-..",   ['e'] = ".",
	['f'] = "..-.",	 ['g'] = "--.",	  ['h'] = "....",  ['i'] = "..",
	['j'] = ".---",	 ['k'] = "-.-",	  ['l'] = ".-..",  ['m'] = "--",
	['n'] = "-.",	 ['o'] = "---",	  ['p'] = ".--.",  ['q'] = "--.-",
	['r'] = ".-.",	 ['s'] = "...",	  ['t'] = "-",	   ['u'] = "..-",
	['v'] = "...-",	 ['w'] = ".--",	  ['x'] = "-..-",  ['y'] = "-.--",
	['z'] = "--..",
};

/* Writes the codes of a text, six bytes for each of its bytes at most, and returns how many bytes these are. */
size_t morse_encode(const unsigned char *text, size_t length, char *to)
{
	char *end = to;

	for (size_t i = 0; i < length; i++) {
		const char *code = codes[text[i]];
		size_t bytes = strlen(code);

		memcpy(end, code, bytes);
		end += bytes;
		*end++ = ' ';
	}
	return (size_t)(end - to);
}
