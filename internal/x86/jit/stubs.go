package jit

// pinned are the guest registers that live in host registers.
var pinned = [...]uint8{rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12}

// enter appends the entry: RDI is the state, RSI the code to run.
func (a *asm) enter(l *Layout) {
	a.byte(0x55) // PUSH RBP
	a.store(mem{base: rdi, index: noReg, disp: l.Frame + frameSP}, rsp)
	a.mov(rsp, rdi)
	a.mov(t0, rsi)
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
func (a *asm) exit(l *Layout) {
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
	a.mov(rdi, rsp)
	a.load(rsp, mem{base: rdi, index: noReg, disp: l.Frame + frameSP})
	a.byte(0x5D, 0xC3) // POP RBP; RET
}
