# A 32-bit Linux program: instructions that 64-bit mode lacks, system calls by INT 80H and by the vsyscall page's own way in (SYSENTER or
# SYSCALL), an LDT segment. It exits with 32 where all is well, else with the number of what was not.
# as --32 -o h.o hello32.s && ld -m elf_i386 -n -s -o hello32 h.o && rm h.o
	.intel_syntax noprefix
	.data
	.balign	4
limits:	.long	0, 10
word1:	.long	0x600DF00D
number:	.long	0
ldt:	.long	0, word1, 0xFFFFF, 0x51	# entry 0, base, limit, 32-bit, pages, useable
text:	.ascii	"a 32-bit program writes\n"
	.set	length, . - text
environment: .skip 28

	.text
	.globl	_start
_start:	mov	ebp, esp
	# BCD: 19 + 28 = 47, 0x19 - 0x28 = 91 with a borrow
	mov	edi, 1
	mov	al, 0x19
	add	al, 0x28
	daa
	cmp	al, 0x47
	jne	fail
	mov	al, 0x19
	sub	al, 0x28
	das
	jnc	fail
	cmp	al, 0x91
	jne	fail
	mov	ax, 0x0807
	aad
	cmp	ax, 87
	jne	fail
	aam
	cmp	ax, 0x0807
	jne	fail
	# PUSHAD, POPAD
	mov	edi, 2
	mov	ecx, 0x12345678
	pushad
	xor	ecx, ecx
	popad
	cmp	ecx, 0x12345678
	jne	fail
	cmp	esp, ebp
	jne	fail
	# INC and DEC of one byte, BOUND within its bounds, LES, PUSH and POP of segment registers
	mov	edi, 3
	.byte	0x41, 0x49		# inc ecx; dec ecx
	cmp	ecx, 0x12345678
	jne	fail
	mov	eax, 5
	bound	eax, limits
	push	ds
	pop	es
	mov	ax, es
	mov	bx, ds
	cmp	ax, bx
	jne	fail
	# addresses wrap at 4 GiB
	mov	edi, 4
	mov	eax, offset word1 + 4
	mov	ecx, [eax - 4]
	cmp	ecx, 0x600DF00D
	jne	fail
	mov	eax, 0xFFFFFFF0
	mov	ecx, [eax + word1 + 0x10]
	cmp	ecx, 0x600DF00D
	jne	fail
	# x87 in 32-bit mode: FNSTENV has the 28-byte form, with the address of the last operand
	mov	edi, 5
	fninit
	fldpi
	fistp	dword ptr number
	cmp	dword ptr number, 3
	jne	fail
	fnstenv	environment
	cmp	dword ptr environment + 8, 0xFFFFFFFF	# the tag word
	jne	fail
	# a write by INT 80H
	mov	edi, 6
	mov	eax, 4
	mov	ebx, 1
	mov	ecx, offset text
	mov	edx, length
	int	0x80
	cmp	eax, length
	jne	fail
	# a segment of the LDT with base word1: modify_ldt(1, entry, 16)
	mov	edi, 7
	mov	eax, 123
	mov	ebx, 1
	mov	ecx, offset ldt
	mov	edx, 16
	int	0x80
	cmp	eax, -38		# ENOSYS: a kernel without it
	je	sys
	test	eax, eax
	jnz	fail
	mov	ax, 7
	mov	gs, ax
	cmp	dword ptr gs:[0], 0x600DF00D
	jne	fail
	# getpid by AT_SYSINFO, found behind the environment, is INT 80H's
sys:	mov	edi, 8
	mov	eax, 20
	int	0x80
	mov	number, eax
	mov	esi, ebp
	lodsd
	lea	esi, [esi + 4*eax + 4]
1:	lodsd
	test	eax, eax
	jnz	1b
2:	lodsd
	mov	ecx, eax
	lodsd
	jecxz	done			# AT_NULL: no AT_SYSINFO
	cmp	ecx, 32
	jne	2b
	mov	ecx, eax
	mov	eax, 20
	call	ecx
	cmp	eax, number
	jne	fail
done:	mov	edi, 32
fail:	mov	eax, 1
	mov	ebx, edi
	int	0x80
