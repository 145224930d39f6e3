package jit

// pinned are the guest registers that live in host registers.
var pinned = [...]uint8{rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12}

// enter appends the entry: RDI is the state, RSI the code to run. With vec it loads the vector registers too.
func (a *asm) enter(l *Layout, vec, avx bool, known uintptr) {
	a.byte(0x55) // PUSH RBP
	a.store(mem{base: rdi, index: noReg, disp: l.Frame + frameSP}, rsp)
	a.mov(rsp, rdi)
	a.mov(t0, rsi)
	if vec {
		a.loadVec(l, avx)
		a.address64(rax, known)
		a.store(at(l.Frame+frameVecEnter), rax)
	}
	a.load32(rax, at(l.Status))
	a.rr(enc{op: 0x89}, rax, rcx)
	a.rr(enc{op: 0xC1}, 5, rcx) // SHR ECX, 11: OF
	a.byte(11)
	a.rr(enc{op: 0x83}, 4, rcx) // AND ECX, 1
	a.byte(1)
	a.byte(0x88, 0xC4) // MOV AH, AL
	a.byte(0x88, 0xC8) // MOV AL, CL
	a.byte(0x04, 0x7F) // ADD AL, 7F
	a.byte(0x9E)       // SAHF
	for _, r := range pinned {
		a.load(r, slot(r))
	}
	a.load(guestSP, slot(rsp))
	a.jmpReg(t0)
}

// exit appends the common exit: R14D is the frame's Word.
func (a *asm) exit(l *Layout, avx bool, load uintptr) {
	for _, r := range pinned {
		a.store(slot(r), r)
	}
	a.store(slot(rsp), guestSP)
	a.byte(0x9F)             // LAHF
	a.byte(0x0F, 0x90, 0xC0) // SETO AL
	a.byte(0x0F, 0xB6, 0xCC) // MOVZX ECX, AH
	a.and32(rcx, 0xD5)
	a.byte(0x0F, 0xB6, 0xC0) // MOVZX EAX, AL
	a.rr(enc{op: 0xC1}, 4, rax)
	a.byte(11)
	a.rr(enc{op: 0x09}, rax, rcx) // OR ECX, EAX
	a.store(at(l.Status), rcx)
	a.rm(enc{op: 0xC6}, 0, at(l.StatusKind))
	a.byte(0)
	a.store32(at(l.Frame+frameWord), t0)
	a.cmp0(at(l.Frame + frameVecLive))
	dry := a.jcc(ccE)
	a.moveVec(l, avx, 0x11)
	if avx {
		a.byte(0xC5, 0xF8, 0x77) // VZEROUPPER
	}
	a.rm(enc{esc: 1, op: 0xAE}, 3, at(l.MXCSR)) // STMXCSR
	a.rm(enc{esc: 1, op: 0xAE}, 2, at(l.Frame+frameMXCSR))
	a.store32i(at(l.Frame+frameVecLive), 0)
	a.address64(rax, load)
	a.store(at(l.Frame+frameVecEnter), rax)
	a.here(dry)
	a.mov(rdi, rsp)
	a.load(rsp, mem{base: rdi, index: noReg, disp: l.Frame + frameSP})
	a.byte(0x5D, 0xC3) // POP RBP; RET
}

// vecStubs appends what frameVecEnter leads to: the loader, and behind it the jump back that is all there is to do once they are loaded.
func (a *asm) vecStubs(l *Layout, avx bool) (load, known uintptr) {
	load = a.base + uintptr(a.pos())
	a.loadVec(l, avx)
	a.rm(enc{op: 0x8D, w: true}, t0, mem{base: rbp, index: noReg, disp: 1 << 30}) // LEA T0, [known]
	f := a.pos() - 4
	a.buf[f-1] &= 0x3F
	a.store(at(l.Frame+frameVecEnter), t0)
	a.to(fixup(f), a.pos())
	known = a.base + uintptr(a.pos())
	a.jmpReg(t1)
	return load, known
}

// address64 puts a whole address into r.
func (a *asm) address64(r uint8, v uintptr) {
	a.prefixes(enc{op: 0xB8 | r&7, w: true}, 0, 0, r)
	a.u32(uint32(v))
	a.u32(uint32(v >> 32))
}
