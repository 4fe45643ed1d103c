// A block's threads are fibers: each has a stack, and one runs until it waits for the others or returns. Stacks are
// changed by ten instructions, or by ucontext where nobody wrote those.
#include <pthread.h>
#include <sys/mman.h>

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "machine.h"

#ifdef __x86_64__
extern "C" void emulated_switch(void** from, void* to);
asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
    .type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulated_switch, . - emulated_switch
)");
#else
#include <ucontext.h>
#endif

namespace emulated {

Place here;
Kernel* kernels = nullptr;
Code& fault_so_far() {
    static Code faults[MOST_GPUS] = {};
    return faults[current_gpu()];
}

void complain(const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::fputs("emulated GPU: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
}

namespace {

constexpr std::size_t STACK = 64 << 10;

struct Barrier {
    unsigned members = 0, arrived = 0, generation = 0;

    void release() {
        arrived = 0;
        generation++;
    }
    // One who returned is waited for no longer.
    void leave() {
        members--;
        if (members > 0 && arrived == members) release();
    }
};

struct Warp {
    Barrier barrier;
    // Values of two exchanges: nobody is two exchanges ahead of anybody else.
    unsigned char slots[2][32][16];
    // The number of the exchange that each value is of.
    unsigned given[2][32];
};

#ifdef __x86_64__
struct Context {
    void* stack_pointer;
    void prepare(char* stack, void (*begin)()) {
        void** top = reinterpret_cast<void**>(stack + STACK) - 1;
        // `begin` finds the stack as after a call: eight below a multiple of 16.
        *--top = reinterpret_cast<void*>(begin);
        stack_pointer = top - 6;
    }
    void change_to(Context& other) { emulated_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
    ucontext_t saved;
    void prepare(char* stack, void (*begin)()) {
        getcontext(&saved);
        saved.uc_stack.ss_sp = stack;
        saved.uc_stack.ss_size = STACK;
        saved.uc_link = nullptr;
        makecontext(&saved, begin, 0);
    }
    void change_to(Context& other) { swapcontext(&saved, &other.saved); }
};
#endif

struct Fiber {
    enum { Fresh, Begun, Returned } state;
    Context context;
    char* stack;
    Place place;
    Warp* warp;
    Barrier* waits_for;
    unsigned generation, exchanges;
};

struct Machine {
    const Kernel* kernel;
    void** arguments;
    void* dynamic_shared;
    std::vector<Fiber> fibers;
    std::size_t returned;
    // From the last fiber to the first, and blocks likewise.
    bool backwards;
    std::vector<Warp> warps;
    Barrier block;
    Context scheduler;
    Fiber* running = nullptr;
    std::vector<char*> free_stacks;
    sigjmp_buf way_out;
    // Why it ended, and the address that was touched, if one was.
    Code ended_with;
    const char* why;
    std::uintptr_t touched;
    // The CPU thread that launched it.
    pthread_t by;

    char* stack() {
        if (!free_stacks.empty()) {
            char* stack = free_stacks.back();
            free_stacks.pop_back();
            return stack;
        }
        void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) std::abort();
        return static_cast<char*>(stack);
    }
};

// Set while a kernel runs: one at a time, whoever launches it.
Machine* machine = nullptr;

void begin() {
    Machine& m = *machine;
    m.kernel->call(m.kernel->function, m.arguments);
    Fiber& fiber = *m.running;
    fiber.state = Fiber::Returned;
    fiber.warp->barrier.leave();
    m.block.leave();
    m.returned++;
    // Most threads return without having waited for any; they all use one stack, which stays in the cache. Nobody takes
    // it before this fiber has left it.
    m.free_stacks.push_back(fiber.stack);
    fiber.context.change_to(m.scheduler);
    std::abort();
}

bool can_go_on(const Fiber& fiber) {
    return fiber.state == Fiber::Begun && (!fiber.waits_for || fiber.waits_for->generation != fiber.generation);
}

void enter(Machine& m, Fiber& fiber, Context& from) {
    fiber.waits_for = nullptr;
    m.running = &fiber;
    here = fiber.place;
    from.change_to(fiber.context);
}

void wait(Barrier& barrier) {
    Machine& m = *machine;
    Fiber& fiber = *m.running;
    if (++barrier.arrived == barrier.members) return barrier.release();
    fiber.waits_for = &barrier;
    fiber.generation = barrier.generation;
    // Mostly the neighbour is next: no need to ask the scheduler.
    Fiber* const next = m.backwards ? &fiber - 1 : &fiber + 1;
    if (next >= m.fibers.data() && next < m.fibers.data() + m.fibers.size() && can_go_on(*next))
        enter(m, *next, fiber.context);
    else
        fiber.context.change_to(m.scheduler);
}

void resume(Machine& m, Fiber& fiber) {
    if (fiber.state == Fiber::Fresh) {
        fiber.stack = m.stack();
        fiber.context.prepare(fiber.stack, begin);
        fiber.state = Fiber::Begun;
    }
    enter(m, fiber, m.scheduler);
    m.running = nullptr;
}

void prepare(Machine& m, uint3 blocks, uint3 threads, uint3 block) {
    const unsigned count = threads.x * threads.y * threads.z;
    m.block = {count, 0, 0};
    for (unsigned i = 0; i < m.warps.size(); i++) {
        m.warps[i].barrier = {count - i * 32 < 32 ? count - i * 32 : 32, 0, 0};
        std::memset(m.warps[i].given, 0, sizeof m.warps[i].given);
    }
    for (unsigned i = 0; i < count; i++) {
        Fiber& fiber = m.fibers[i];
        fiber.state = Fiber::Fresh;
        fiber.place = {{i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y}, block, threads, blocks, i % 32};
        fiber.warp = &m.warps[i / 32];
        fiber.waits_for = nullptr;
        fiber.exchanges = 0;
    }
}

void run_block(Machine& m) {
    const std::size_t count = m.fibers.size();
    for (m.returned = 0; m.returned < count;) {
        bool moved = false;
        for (std::size_t i = 0; i < count; i++) {
            Fiber& fiber = m.fibers[m.backwards ? count - 1 - i : i];
            if (fiber.state != Fiber::Fresh && !can_go_on(fiber)) continue;
            resume(m, fiber);
            moved = true;
        }
        if (!moved) {
            for (Fiber& fiber : m.fibers)
                if (fiber.state != Fiber::Returned) {
                    here = fiber.place;
                    break;
                }
            fault(LAUNCH_FAILED, "threads wait for others that never come: a barrier or a shuffle that not all reach");
        }
    }
}

struct sigaction before_us[3];
constexpr int WATCHED[3] = {SIGSEGV, SIGBUS, SIGILL};

// A kernel's mistake ends the kernel; anybody else's is none of ours.
void caught(int signal, siginfo_t* info, void* context) {
    if (machine && machine->running && pthread_equal(machine->by, pthread_self())) {
        // The stack of a signal is too small to tell about it here.
        if (signal == SIGILL) fault(MISALIGNED_ADDRESS, "a misaligned address, or an index beyond a shared array");
        machine->touched = std::uintptr_t(info->si_addr);
        fault(ILLEGAL_ADDRESS, "memory that is not the kernel's");
    }
    for (int i = 0; i < 3; i++) {
        if (WATCHED[i] != signal) continue;
        if (before_us[i].sa_flags & SA_SIGINFO) return before_us[i].sa_sigaction(signal, info, context);
        if (before_us[i].sa_handler != SIG_DFL && before_us[i].sa_handler != SIG_IGN) return before_us[i].sa_handler(signal);
        sigaction(signal, &before_us[i], nullptr);
    }
}

}  // namespace

void watch() {
    static const bool once = [] {
        struct sigaction action = {};
        action.sa_sigaction = caught;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int i = 0; i < 3; i++) sigaction(WATCHED[i], &action, &before_us[i]);
        return true;
    }();
    (void)once;
}

void wait_for_block() { wait(machine->block); }

void wait_for_warp() { wait(machine->running->warp->barrier); }

unsigned char (*slots())[16] {
    Fiber& fiber = *machine->running;
    const unsigned at = ++fiber.exchanges % 2;
    fiber.warp->given[at][here.lane] = fiber.exchanges;
    return fiber.warp->slots[at];
}

bool gave(unsigned lane) {
    const Fiber& fiber = *machine->running;
    return fiber.warp->given[fiber.exchanges % 2][lane] == fiber.exchanges;
}

void* dynamic_shared() { return machine->dynamic_shared; }

void fault(int code, const char* why) {
    machine->ended_with = Code(code);
    machine->why = why;
    siglongjmp(machine->way_out, 1);
}

namespace {

void tell(const Machine& m) {
    complain("kernel `%s`, block (%u, %u, %u), thread (%u, %u, %u): %s", m.kernel->name, here.block.x, here.block.y,
             here.block.z, here.thread.x, here.thread.y, here.thread.z, m.why);
    if (m.touched == 0) return;
    complain("address %#zx", std::size_t(m.touched));
    if (memory::ours(m.touched)) memory::describe(m.touched);
}

}  // namespace

Code run(const Kernel& kernel, uint3 blocks, uint3 threads, std::size_t shared_bytes, void** arguments) {
    // In both orders comes out the same, or threads race.
    static const bool backwards = std::getenv("EMULATED_GPU_BACKWARDS") != nullptr;
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    static Machine m;
    m.by = pthread_self();
    m.kernel = &kernel;
    m.arguments = arguments;
    m.dynamic_shared = nullptr;
    std::uintptr_t shared = 0;
    if (shared_bytes > 0 && memory::allocate(shared_bytes, &shared) != SUCCESS) return LAUNCH_FAILED;
    m.dynamic_shared = reinterpret_cast<void*>(shared);
    const std::size_t count = std::size_t(threads.x) * threads.y * threads.z;
    m.fibers.resize(count);
    m.warps.resize((count + 31) / 32);
    m.backwards = backwards;
    m.ended_with = SUCCESS;
    m.touched = 0;
    machine = &m;
    if (sigsetjmp(m.way_out, 1) == 0) {
        const std::size_t all = std::size_t(blocks.x) * blocks.y * blocks.z;
        for (std::size_t i = 0; i < all; i++) {
            const std::size_t at = backwards ? all - 1 - i : i;
            if (shared) std::memset(m.dynamic_shared, 0xff, shared_bytes);
            prepare(m, blocks, threads,
                    {unsigned(at % blocks.x), unsigned(at / blocks.x % blocks.y), unsigned(at / blocks.x / blocks.y)});
            run_block(m);
        }
    } else {
        // The stacks of those that did not return are not used again: after a fault nothing runs any more.
        m.running = nullptr;
        tell(m);
    }
    machine = nullptr;
    if (shared) memory::release(shared);
    return m.ended_with;
}

}  // namespace emulated
