// libnccl, as far as drydock's worker uses it, over the emulated GPUs: one process, communicators that do not block, sums
// of f32. Where NCCL would hang or write nonsense, what is wrong is told first.
//   EMULATED_NCCL_VERSION   the version that the library is of (22809)
//   EMULATED_NCCL_HANGS     which sum is never done, counted from 1
//   EMULATED_NCCL_FAILS     which sum ends with an error
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

extern "C" bool emulated_gpu_holds(std::uintptr_t address, std::size_t bytes);
extern "C" void emulated_gpu_complains(const char* what);
extern "C" int emulated_gpu_current();
extern "C" bool emulated_gpu_streams(int gpu, const void* stream);
extern "C" void emulated_gpu_becomes(int gpu);

namespace {

enum Result { SUCCESS = 0, REMOTE_ERROR = 6, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
constexpr int FLOAT32 = 7, SUM = 0;
constexpr unsigned MAGIC = 0xcafebeef;

struct UniqueId {
    char bytes[128];
};

// The beginning of NCCL's own, up to what this one looks at.
struct Config {
    std::size_t size;
    unsigned magic, version;
    int blocking;
};

struct Clique;
struct Communicator {
    Clique* clique;
    int rank, gpu;
};

struct Clique {
    std::vector<Communicator*> ranks;
    // What everybody who asks is told; once the work is done, the first who asks still hears that it is not.
    Result state = IN_PROGRESS;
    int asked = 0;
    bool hangs = false;
};

struct Sum {
    Communicator* of;
    const float* from;
    float* to;
    std::size_t count;
    void* stream;
};

std::mutex mutex;
std::map<unsigned, Clique> cliques;
unsigned next_id = 0;
int sums_so_far = 0;
// A group is its thread's.
thread_local int groups = 0;
thread_local std::vector<Sum> asked_for;
thread_local std::vector<Clique*> begun;
// Where those that have begun are to be found: NCCL may write there once more when they are ready.
thread_local std::vector<std::pair<Communicator**, Communicator*>> given;
char last_error[256] = "";

__attribute__((format(printf, 1, 2))) Result mistake(const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    emulated_gpu_complains(last_error);
    return INVALID_USAGE;
}

int number(const char* name, int otherwise) {
    const char* value = std::getenv(name);
    return value ? std::atoi(value) : otherwise;
}

bool is_whole(const Clique& clique) {
    for (const Communicator* rank : clique.ranks)
        if (!rank) return false;
    return true;
}

// Whether the rank's memory and stream are its GPU's.
Result check(const Sum& sum) {
    const int before = emulated_gpu_current();
    emulated_gpu_becomes(sum.of->gpu);
    const bool held = emulated_gpu_holds(std::uintptr_t(sum.to), sum.count * 4) &&
                      emulated_gpu_holds(std::uintptr_t(sum.from), sum.count * 4);
    if (before >= 0) emulated_gpu_becomes(before);
    if (!held) return mistake("NCCL: rank %d sums %zu values that are not its GPU's", sum.of->rank, sum.count);
    if (!emulated_gpu_streams(sum.of->gpu, sum.stream)) return mistake("NCCL: rank %d's stream is not its GPU's", sum.of->rank);
    return SUCCESS;
}

// Each rank's part of the values is summed from the rank after it on, as around a ring; all get the same.
void add_up(const std::vector<Sum>& of_ranks) {
    const std::size_t ranks = of_ranks.size(), count = of_ranks[0].count;
    std::vector<float> sums(count);
    for (std::size_t i = 0; i < count; i++) {
        const std::size_t first = i * ranks / count + 1;
        for (std::size_t r = 0; r < ranks; r++) {
            const float value = of_ranks[(first + r) % ranks].from[i];
            sums[i] = r == 0 ? value : sums[i] + value;
        }
    }
    for (const Sum& sum : of_ranks) std::memcpy(sum.to, sums.data(), count * 4);
}

void do_all(Clique& clique, const std::vector<std::vector<Sum>>& of_ranks) {
    std::size_t most = 0;
    for (const auto& sums : of_ranks) most = sums.size() > most ? sums.size() : most;
    for (std::size_t i = 0; i < most; i++) {
        sums_so_far++;
        std::vector<Sum> together;
        for (std::size_t rank = 0; rank < of_ranks.size(); rank++) {
            if (i >= of_ranks[rank].size()) {
                mistake("NCCL: rank %zu never comes to sum %zu of a group", rank, i + 1);
                clique.hangs = true;
                return;
            }
            together.push_back(of_ranks[rank][i]);
            if (together[rank].count != together[0].count) {
                clique.state = mistake("NCCL: rank 0 sums %zu values, and rank %zu %zu", together[0].count, rank,
                                       together[rank].count);
                return;
            }
            if (const Result wrong = check(together[rank])) {
                clique.state = wrong;
                return;
            }
        }
        if (sums_so_far == number("EMULATED_NCCL_HANGS", 0)) {
            clique.hangs = true;
            return;
        }
        if (sums_so_far == number("EMULATED_NCCL_FAILS", 0)) {
            std::snprintf(last_error, sizeof last_error, "the link between two GPUs broke");
            clique.state = REMOTE_ERROR;
            return;
        }
        add_up(together);
    }
}

}  // namespace

#define PUBLIC extern "C" __attribute__((visibility("default")))

PUBLIC Result ncclGetVersion(int* version) {
    *version = number("EMULATED_NCCL_VERSION", 22809);
    return SUCCESS;
}

PUBLIC Result ncclGetUniqueId(UniqueId* id) {
    const std::lock_guard lock(mutex);
    *id = {};
    const unsigned number = ++next_id;
    std::memcpy(id->bytes, &number, sizeof number);
    return SUCCESS;
}

PUBLIC Result ncclCommInitRankConfig(Communicator** communicator, int ranks, UniqueId id, int rank, const Config* config) {
    const std::lock_guard lock(mutex);
    unsigned number = 0;
    std::memcpy(&number, id.bytes, sizeof number);
    if (number == 0 || number > next_id) return mistake("NCCL: no such id");
    if (config->magic != MAGIC || config->size < sizeof(Config)) return mistake("NCCL: a config that nobody has filled in");
    if (config->blocking != 0) return mistake("NCCL: only communicators that do not block are emulated");
    if (emulated_gpu_current() < 0) return mistake("NCCL: this thread has no context");
    if (rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    Clique& clique = cliques[number];
    clique.ranks.resize(std::size_t(ranks));
    for (const Communicator* other : clique.ranks)
        if (other && other->gpu == emulated_gpu_current()) return mistake("NCCL: ranks %d and %d share a GPU", other->rank, rank);
    if (clique.ranks[std::size_t(rank)]) return mistake("NCCL: rank %d comes twice", rank);
    *communicator = clique.ranks[std::size_t(rank)] = new Communicator{&clique, rank, emulated_gpu_current()};
    begun.push_back(&clique);
    given.push_back({communicator, *communicator});
    return SUCCESS;
}

PUBLIC Result ncclGroupStart() {
    groups++;
    return SUCCESS;
}

PUBLIC Result ncclAllReduce(const void* from, void* to, std::size_t count, int type, int operation, Communicator* communicator,
                            void* stream) {
    const std::lock_guard lock(mutex);
    if (type != FLOAT32 || operation != SUM) return mistake("NCCL: only sums of f32 are emulated");
    if (groups == 0) return mistake("NCCL: one thread that speaks for several ranks sums in a group, or waits for itself");
    if (communicator->clique->state != SUCCESS) return mistake("NCCL: rank %d is not ready to sum", communicator->rank);
    if (emulated_gpu_current() != communicator->gpu) return mistake("NCCL: rank %d is of another GPU", communicator->rank);
    asked_for.push_back({communicator, static_cast<const float*>(from), static_cast<float*>(to), count, stream});
    return SUCCESS;
}

PUBLIC Result ncclGroupEnd() {
    const std::lock_guard lock(mutex);
    if (groups == 0) return mistake("NCCL: a group ends that has not begun");
    if (--groups > 0) return SUCCESS;
    for (Clique* clique : begun)
        if (!is_whole(*clique) && !clique->hangs) {
            mistake("NCCL: not every rank of a clique has come");
            clique->hangs = true;
        }
    std::map<Clique*, std::vector<std::vector<Sum>>> work;
    for (const Sum& sum : asked_for) {
        auto& of_ranks = work[sum.of->clique];
        of_ranks.resize(sum.of->clique->ranks.size());
        of_ranks[std::size_t(sum.of->rank)].push_back(sum);
    }
    const bool nothing = begun.empty() && work.empty();
    for (Clique* clique : begun) clique->asked = 0, clique->state = SUCCESS;
    for (auto& [clique, of_ranks] : work) {
        clique->asked = 0;
        do_all(*clique, of_ranks);
    }
    for (const auto& [place, communicator] : given) *place = communicator;
    given.clear();
    begun.clear();
    asked_for.clear();
    return nothing ? SUCCESS : IN_PROGRESS;
}

PUBLIC Result ncclCommGetAsyncError(Communicator* communicator, Result* state) {
    const std::lock_guard lock(mutex);
    Clique& clique = *communicator->clique;
    *state = clique.hangs || clique.asked++ == 0 ? IN_PROGRESS : clique.state;
    return SUCCESS;
}

PUBLIC Result ncclCommAbort(Communicator* communicator) {
    const std::lock_guard lock(mutex);
    communicator->clique->ranks[std::size_t(communicator->rank)] = nullptr;
    delete communicator;
    return SUCCESS;
}

PUBLIC const char* ncclGetErrorString(Result result) {
    switch (result) {
        case SUCCESS: return "no error";
        case REMOTE_ERROR: return "remote process exited or there was a network error";
        case INVALID_ARGUMENT: return "invalid argument";
        case INVALID_USAGE: return "invalid usage";
        case IN_PROGRESS: return "NCCL operation in progress";
    }
    return "unknown result code";
}

PUBLIC const char* ncclGetLastError(Communicator*) { return last_error; }
