#include "streams.h"
#include "memory.h"
#include <map>

namespace emulator {

// Work that nobody waits for must not pile up.
constexpr size_t LONGEST = 4096;

static std::map<void *, std::shared_ptr<Stream>> created;
// Those of threads, which stay when a thread ends with work in them.
static std::vector<std::shared_ptr<Stream>> of_threads;

Graph::~Graph() {
    for (void *pointer : memory) release(pointer);
}

std::shared_ptr<Stream> stream_of(void *handle) {
    if (handle == (void *)0 || handle == (void *)1) {
        static const auto legacy = std::make_shared<Stream>();
        return legacy;
    }
    if (handle == (void *)2) {
        thread_local std::shared_ptr<Stream> mine;
        if (!mine) of_threads.push_back(mine = std::make_shared<Stream>());
        return mine;
    }
    auto found = created.find(handle);
    return found == created.end() ? nullptr : found->second;
}

void *create_stream() {
    auto stream = std::make_shared<Stream>();
    void *handle = stream.get();
    created[handle] = std::move(stream);
    return handle;
}

void destroy_stream(void *handle) {
    auto stream = stream_of(handle);
    if (!stream) return;
    run_all(*stream);
    created.erase(handle);
}

void run_until(Stream &stream, uint64_t position) {
    while (stream.done < position && !stream.queue.empty()) {
        auto work = std::move(stream.queue.front());
        stream.queue.pop_front();
        stream.done++;
        work();
    }
}

void run_all(Stream &stream) { run_until(stream, stream.put); }

void run_everything() {
    for (auto &[handle, stream] : created) run_all(*stream);
    for (auto &stream : of_threads) run_all(*stream);
}

void put(void *handle, std::function<void()> work) {
    auto stream = stream_of(handle);
    if (handle == (void *)0 || handle == (void *)1) {
        run_everything();
        work();
        return;
    }
    if (stream->capture) {
        stream->capture->work.push_back(std::move(work));
        return;
    }
    stream->queue.push_back(std::move(work));
    stream->put++;
    if (stream->queue.size() > LONGEST) run_all(*stream);
}

}  // namespace emulator
