// SPDX-License-Identifier: Apache-2.0 OR MIT
// vmsrs.hpp: requests by lambdas, containers in domains, leases. Exits with 0 if all is as it should be.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vmsrs.hpp>

#define EXPECT(condition)                                                              \
	do {                                                                           \
		if (!(condition)) {                                                    \
			std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			std::exit(EXIT_FAILURE);                                       \
		}                                                                      \
	} while (0)

struct Counted {
	static int alive;

	explicit Counted(int value) : value(value) { alive++; }
	Counted(const Counted &other) : value(other.value) { alive++; }
	~Counted() { alive--; }
	int value;
};

int Counted::alive;

struct not_an_exception {
	int value;
};

static void results_and_exceptions(vmsrs::domain user)
{
	EXPECT(user.run([](vmsrs::request &) { return 7; }) == 7);
	EXPECT(user.run([](vmsrs::request &) { return std::string(100, 'x'); }).size() == 100);
	user.run([](vmsrs::request &) {});
	EXPECT(user.run([](vmsrs::request &) { return Counted(3); }).value == 3);
	EXPECT(Counted::alive == 0);

	// What is thrown comes out, and nothing is kept.
	int undone = 0;
	auto undo = [&] { undone++; };
	try {
		user.run([&](vmsrs::request &request) -> Counted {
			Counted local(1);

			request.defer(&undo);
			throw std::runtime_error("no " + std::to_string(local.value));
		});
		EXPECT(false);
	} catch (const std::runtime_error &error) {
		EXPECT(!std::strcmp(error.what(), "no 1"));
	}
	EXPECT(undone == 1 && Counted::alive == 0);

	int done = 0;
	auto later = [&] { done++; };
	user.run([&](vmsrs::request &request) {
		request.on_commit(&later);
		EXPECT(done == 0);
	});
	EXPECT(done == 1);

	try {
		user.run([&](vmsrs::request &request) {
			request.keep(done);
			done = 2;
			request.on_commit(&later);
			request.fail("this request fails");
		});
		EXPECT(false);
	} catch (const vmsrs::request_failed &) {
	}
	EXPECT(done == 1);
	try {
		user.run([](vmsrs::request &) { throw not_an_exception{ 5 }; });
		EXPECT(false);
	} catch (const not_an_exception &error) {
		EXPECT(error.value == 5);
	}

	// A request that fails.
	try {
		user.run([&](vmsrs::request &request) {
			volatile int *volatile null = nullptr;

			request.defer(&undo);
			*null = 1;
			return Counted(2);
		});
		EXPECT(false);
	} catch (const vmsrs::request_failed &error) {
		EXPECT(error.code() == VMSRS_EFAILED && error.failure().kind == VMSRS_KIND_MEMORY);
		EXPECT(!std::strcmp(error.kind(), "memory"));
	}
	EXPECT(undone == 2 && Counted::alive == 0);
	try {
		user.run([](vmsrs::request &request) { request.fail("not so"); });
		EXPECT(false);
	} catch (const vmsrs::request_failed &error) {
		EXPECT(!std::strcmp(error.failure().message, "not so"));
	}

	// Errors of calls: in the request they give it up, like others.
	try {
		user.run([&](vmsrs::request &request) { request.enter(user); });
		EXPECT(false);
	} catch (const vmsrs::error &error) {
		EXPECT(error.code() == VMSRS_EHELD);
	}
	try {
		user.run([&](vmsrs::request &) { user.run([](vmsrs::request &) {}); });
		EXPECT(false);
	} catch (const vmsrs::error &error) {
		EXPECT(error.code() == VMSRS_ENESTED);
	}
	vmsrs_options options{};
	options.flags = 1U << 31;
	try {
		user.run(options, [](vmsrs::request &) {});
		EXPECT(false);
	} catch (const vmsrs::error &error) {
		EXPECT(error.code() == VMSRS_EINVAL);
	}
	options.flags = VMSRS_SEAL;
	EXPECT(user.run(options, [](vmsrs::request &) { return 4; }) == 4);
}

using table = vmsrs::map<int, vmsrs::string>;

static void containers(vmsrs::domain user, vmsrs::domain other)
{
	for (int i = 0; i < 500; i++)
		user.run([&](vmsrs::request &) {
			auto *all = user.root<table>();

			if (!all) {
				all = user.make<table>(user.allocator<table::value_type>());
				user.set_root(all);
			}
			auto text = vmsrs::string(user.allocator<char>());
			text = "number ";
			text += std::to_string(i);
			text.append(40, '.');
			all->insert_or_assign(i % 300, text);
		});
	std::string found = user.run([&](vmsrs::request &) {
		auto *all = user.root<table>();

		EXPECT(all->size() == 300 && all->get_allocator() == user.allocator<int>());
		return std::string(all->at(42).c_str());
	});
	EXPECT(found.substr(0, 11) == "number 342.");

	// Without the domain there is no memory.
	EXPECT(!vmsrs_held_domain(user.number()));
	EXPECT(vmsrs_domain_number(nullptr) == UINT32_MAX);
	try {
		vmsrs::vector<int> outside(user.allocator<int>());

		outside.push_back(1);
		EXPECT(false);
	} catch (const std::bad_alloc &) {
	}
	other.run([&](vmsrs::request &request) {
		vmsrs::vector<int> numbers(user.allocator<int>());

		EXPECT(!vmsrs_held_domain(user.number()));
		vmsrs::entered entered(request, user);
		EXPECT(vmsrs_held_domain(user.number()) == user.native());
		numbers.assign(1000, 5);
		EXPECT(numbers.back() == 5);
		numbers = vmsrs::vector<int>(user.allocator<int>());
	});

	// An element that is overrun.
	try {
		user.run([&](vmsrs::request &) {
			auto *numbers = user.make<vmsrs::vector<char>>(user.allocator<char>());
			numbers->resize(16);
			char *volatile end = numbers->data() + 16;
			*end = 1;
		});
		EXPECT(false);
	} catch (const vmsrs::request_failed &error) {
		EXPECT(error.failure().kind == VMSRS_KIND_RED_ZONE);
	}
}

static void resources(vmsrs::domain user)
{
	user.run([&](vmsrs::request &request) {
		vmsrs::resource memory = user.resource(), same = user.resource();
		std::pmr::vector<std::pmr::string> texts(&memory);

		void *huge = memory.allocate(std::size_t{ 100 } << 20);
		static_cast<char *>(huge)[50 << 20] = 1;
		memory.deallocate(huge, std::size_t{ 100 } << 20);
		EXPECT(memory.is_equal(same) && !memory.is_equal(*std::pmr::new_delete_resource()));
		for (int i = 0; i < 100; i++)
			texts.emplace_back(100, 'a');
		EXPECT(texts.back().get_allocator().resource() == &memory);
		EXPECT(vmsrs_usable_size(texts.back().data()) >= 101);

		vmsrs::arena arena = request.arena();
		std::pmr::unordered_map<int, std::pmr::string> scratch(&arena);
		for (int i = 0; i < 100; i++)
			scratch[i] = "something that is too long to be in the string";
		void *aligned = static_cast<std::pmr::memory_resource &>(arena).allocate(100, 256);
		EXPECT(reinterpret_cast<std::uintptr_t>(aligned) % 256 == 0);
	});
}

static void leases(vmsrs::app app)
{
	vmsrs::domain user = app.domain("leases");
	vmsrs::lease lease, none;

	user.run([&](vmsrs::request &) {
		auto *text = user.make<vmsrs::string>(user.allocator<char>());

		text->assign(30000, 'l');
		user.set_root(text);
	});
	auto find = [&](vmsrs::request &) -> std::string_view {
		auto *text = user.root<vmsrs::string>();

		return { text->data(), text->size() };
	};
	lease = user.lease(find);
	EXPECT(lease && lease.view() == std::string(30000, 'l'));
	none = user.lease([](vmsrs::request &) { return std::string_view(); });
	EXPECT(!none);
	try {
		user.lease([](vmsrs::request &) -> std::string_view { throw std::runtime_error("not found"); });
		EXPECT(false);
	} catch (const std::runtime_error &error) {
		EXPECT(!std::strcmp(error.what(), "not found"));
	}
	user.run([&](vmsrs::request &) { user.root<vmsrs::string>()->assign(30000, 'm'); });
	EXPECT(user.info().pages > 0);
	user.clear();
	EXPECT(user.run([&](vmsrs::request &) { return user.root<char>() == nullptr; }));
	user.remove();
	std::thread([lease = std::move(lease)] { EXPECT(lease.view() == std::string(30000, 'l')); }).join();
	EXPECT(!lease);
}

static void mutexes(vmsrs::domain user)
{
	static int guarded, repaired;
	auto repair = [] {
		guarded = 0;
		repaired++;
	};
	static vmsrs::mutex mutex(repair);

	try {
		user.run([&](vmsrs::request &request) {
			std::lock_guard lock(mutex);

			guarded = 17;
			request.fail("in the middle");
		});
		EXPECT(false);
	} catch (const vmsrs::request_failed &) {
	}
	EXPECT(repaired == 1 && guarded == 0);
	std::unique_lock lock(mutex, std::try_to_lock);
	EXPECT(lock.owns_lock());
}

int main()
{
	auto app = vmsrs::app::open("containers");

	EXPECT(!app.is_protected());
	results_and_exceptions(app.domain("results"));
	containers(app.domain("user"), app.domain("other"));
	resources(app.domain("resources"));
	leases(app);
	mutexes(app.domain("mutexes"));
	app.flush();
	try {
		app.domain("");
		EXPECT(false);
	} catch (const vmsrs::error &error) {
		EXPECT(error.code() == VMSRS_EINVAL);
	}
	return EXIT_SUCCESS;
}
