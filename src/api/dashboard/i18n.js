// Texts of the page in English and Indonesian.

const KEPT = 'tercile-language';

const WORDS = {
  en: {
    skip: 'Skip to the segments', connecting: 'Connecting', live: 'Live', language: 'Language', theme: 'Dark theme',
    lost: 'Connection lost, last data {time}; trying again', unreachable: 'The server does not answer; trying again',
    stream: 'The stream', segmentations: 'Segmentations', docs: 'API documentation',
    records_n: '{n} records', records_n_one: '1 record',
    summary: 'in {segmentations} segmentations. {models} models serve: one for the first third of the stream, one for the first two, one for all of it.',
    summary_empty: 'Nothing is stored yet. The page fills by itself as soon as records come in.',
    summary_training: 'are stored. The first models are on their way.',
    summary_refused: 'are stored, but no model could be made of them.',
    clock_apart: 'This device’s clock and the server’s are {minutes} minutes apart; ages are told by the server’s.',
    stale: 'The store can’t be read just now; its figures are older than they look. The server’s log says why.',
    halted: 'A partition has halted: {gap}',
    refused: 'No model: {why}.',
    fault: '{name}, slice {slice}: {why}; tercile doctor says which file, and what to do.',
    refused_old: '{name}, slice {slice}: the last training gave no model, an older one serves: {why}.',
    fact_rate: 'Records a second', fact_lag: 'Lag', fact_unreadable: 'Unreadable', fact_files: 'Files', fact_trained: 'Last training', fact_models: 'Models in service',
    quiet: 'nothing just now', partitions_n: 'in {n} partitions', partitions_n_one: 'in 1 partition', no_ingest: 'no ingest in this process',
    none_yet: 'all could be read', look: 'have a look', not_yet: 'not yet', of_n: 'of {n}',
    just_now: 'just now', in_future: 'in the future: a clock was wrong',
    segments: 'Segments',
    segments_lead: 'Each dot is a record, the ground shows which segment a new one would join. The three slices have the same axes: what grew or moved between them can be seen.',
    slice_1: 'First third', slice_2: 'First two thirds', slice_3: 'Whole stream',
    segments_lead_one: 'Each bar counts records of the sample; dashed lines are the cuts between the segments. The three slices have the same axis.',
    imputed: '{feature} was missing in {n} of {all} rows and took the mean', hollow: 'hollow', was_missing: 'missing, at the mean', of_them_missing: '{n} of them missing, at the mean',
    rows_version: '{n} rows · version {version}', rows_n: '{n} rows', no_model: 'No model yet.',
    across: 'Across', up: 'Up', log: 'log scale', log_of: 'Log: {feature}',
    zoom_in: 'Zoom in (Ctrl and wheel)', zoom_out: 'Zoom out', zoom_all: 'Show all',
    scatter_of: 'Scatter of {n} records.', histogram_of: 'Histogram of {n} records.', scatter_of_sample: 'Scatter of a sample of {n} of {of} records.', histogram_of_sample: 'Histogram of a sample of {n} of {of} records.', rows_of_sample: 'records of the sample',
    place: 'partition {partition}, offset {offset}',
    typical_key: 'Three numbers are quartiles: a quarter of the records is at or below the first, half at or below the second, three quarters at or below the third.',
    tiny: 'Segments with hardly any records: {names} ({n} of {all}).', tiny_prefers: 'Without these records the silhouette prefers {k} segments.', tiny_try: 'See what the others are like without them.',
    new_segment: 'new', words_changed: 'Words that changed in the last training', description: 'description', no_word: 'left out',
    word_changed: '{slice}, {name}: {of} was {from}, is {to}.',
    changed: 'What changed',
    moved_2: 'From the first third to the first two, {n} of {all} records ({share}) changed their segment.',
    moved_3: 'From there to the whole stream, {n} of {all} ({share}) did.',
    nothing_to_compare: 'There is only one model, or it has other features than the one before: nothing to compare yet.',
    flow: 'Who moved where', flow_lead: 'Each column is a slice, as high as it has rows. Ribbons are records that were there before; the rest is new.',
    moves: 'How the centroids moved', moves_lead: 'From the first third (small) to the whole stream (numbered).',
    in_figures: 'In figures', slice: 'Slice', segment: 'Segment', centroid: 'Centroid', step: 'Step', from: 'From', to: 'To', records: 'Records', nobody_moved: 'No record changed its segment.',
    try: 'Try it', try_lead: 'Type a record, see which segment it falls into; the star marks it in the plots above.',
    trained_on: 'Model of', predict: 'Which segment?', try_first: 'The answer appears here, with the reasons and the curl command that asks the same.',
    no_number: '{feature} must be a number.', same_by_curl: 'The same by curl', copy: 'Copy', copied: 'Copied',
    distance: 'Distance to its centroid: {distance}.', distances: 'Distance to each centroid', shares: 'Each feature’s part in the distance to its centroid',
    runner_up: 'The next nearest is {name}, by a margin of {margin}.', each_slice: 'By each slice’s model',
    good: 'How good', good_lead: 'Silhouette tells how well the segments keep apart, from −1 to 1; inertia, how far records lie from their centroids.',
    silhouette: 'Silhouette', inertia: 'Inertia', inertia_row: 'Inertia per row', rows: 'Rows', left_out: 'Left out', iterations: 'Iterations',
    strong: 'A strong structure', reasonable: 'A reasonable structure', weak: 'A weak structure', no_structure: 'No substantial structure', one_cluster: 'One cluster: nothing to keep apart', no_silhouette: 'Not known: the sample of this model has rows of one cluster only. The next training computes it.', silhouette_sample: 'Of a sample of {n} of {of} rows, which includes rare segments',
    candidates_title: 'Waiting for a decision', candidate_serves: 'Serves', candidate_waits: 'Candidate', candidate_since: 'version {version} has been waiting since {time}:', candidate_decide: 'To decide:',
    drift_title: 'Since the training', drift_waiting: 'Compared when it comes into sight.', drift_nothing: 'No records have arrived since.',
    drift_few: 'Too little data to compare: {n} rows arrived since, and 500 are needed on either side.',
    drift_ok: '{n} of {of} rows that arrived since {since} are distributed like those of the training.',
    drift_drifting: '{n} of {of} rows that arrived since {since} differ from those of the training.', drift_began: 'The drift began at about {time}.',
    drift_change: 'Change', drift_missing: 'Missing, before → now', drift_share: 'Share, before → now', drift_up: 'higher', drift_down: 'lower', drift_spread: 'spread otherwise', drift_none: 'none',
    drift_unlike: '{now} of these rows are farther from their centroids than 999 of 1,000 rows of the training; of its own rows {before} are.', feature: 'Feature',
    k_title: 'How many segments', k_waiting: 'Computed when it comes into sight.', k_working: 'Trying several numbers of clusters on the sample …',
    k_nothing: 'There are too few different rows to try several numbers of clusters.',
    k_agree_3: 'Elbow, silhouette and stability agree on {k}.', k_agree_2: 'Two of three say {k}.', k_agree_1: 'Elbow, silhouette and stability disagree; {k} has the best silhouette.',
    k_as_model: 'The model has {k}.', k_unlike_model: 'The model has {k}, as its SQL file asks.', k_sample: 'Tried on a sample of {n} of {of} rows.', k_rows: 'Tried on {n} rows.',
    elbow: 'Elbow', stability: 'Stability', picks: 'picks {k}', model_has: 'the model has {k}', mean: 'mean {mean}',
    receipt: 'Receipt: {slice}, version {version}', made_by: '{version}, method {method}', version: 'Version', trained_at: 'Trained', topic: 'Topic', stream_then: 'Records in the stream then', next_offsets: 'Next offsets',
    last_record: 'Last record', starts_seed: 'Starts · seed', predecessor: 'Numbers kept from', scaled: 'Scaled', version_of: 'version {version}, {slice}', none: 'none',
    rows_hash: 'Hash of the rows', sql_hash: 'Hash of the SQL', check: 'Check it',
    unreadable: 'The unreadable', unreadable_lead: 'Messages that are no JSON objects keep their place in the store, with the reason.',
    all_readable: 'Every message could be read', all_readable_more: 'What can’t be will stand here, with its reason and its place in the topic.',
    last_of: 'The last {n} of {all}.', when: 'When', where: 'Where', why: 'Why', began: 'How it begins', empty_message: '(empty)',
    no_segmentations: 'No segmentations', no_segmentations_more: 'A SQL file with a header line “-- k: 3” makes one.',
    no_models: 'No models yet', no_models_empty: 'They are trained once records are stored. Send some: tercile produce FILE.', no_models_more: 'They are trained now, or after POST /api/train.',
    no_model_possible: 'No model could be made',
    not_loaded: 'This segmentation could not be loaded', answered: 'The server answered {status}.',
    key_title: 'This server asks for a key', key_why: 'It is kept until this tab is closed, and sent to this server alone.', key_refused: 'That key was not accepted. It must have the scope “read”.', key: 'API key', key_go: 'Continue',
    members: 'Members', members_lead: 'Every {what} is in one segment of each slice that has it. Keys are shown when you ask for them.', member_title: 'One member', look_up: 'Look up', look_up_first: 'Its segment in each slice appears here.', empty_key: '(the empty key)', not_there: 'not a member then', distance_short: 'Distance',
    moved_title: 'Members that moved', moved_lead: 'Those that were in another segment in the model before.', show_moved: 'Show their keys', moved_shown: '{n} shown. {of}.', more: 'More',
    members_denied: 'The key of this page does not have the scope “members”, so it may not see keys.',
    segments_lead_entity: 'Each dot is a member, one for each {what}; the ground shows which segment a new one would join. The three slices have the same axes: what grew or moved between them can be seen.',
    segments_lead_one_entity: 'Each bar counts members of the sample, one for each {what}; dashed lines are the cuts between the segments. The three slices have the same axis.',
    imputed_entity: '{feature} was missing in {n} of {all} members and took the mean', rows_version_entity: '{n} members · version {version}', rows_n_entity: '{n} members',
    scatter_of_entity: 'Scatter of {n} members.', histogram_of_entity: 'Histogram of {n} members.', scatter_of_sample_entity: 'Scatter of a sample of {n} of {of} members.', histogram_of_sample_entity: 'Histogram of a sample of {n} of {of} members.', rows_of_sample_entity: 'members of the sample',
    tiny_entity: 'Segments with hardly any members: {names} ({n} of {all}).', tiny_prefers_entity: 'Without these members the silhouette prefers {k} segments.',
    typical_key_entity: 'Three numbers are quartiles: a quarter of the members is at or below the first, half at or below the second, three quarters at or below the third.',
    moved_2_entity: 'From the first third to the first two, {n} of {all} members that both have ({share}) changed their segment.', moved_3_entity: 'From there to the whole stream, {n} of {all} ({share}) did.',
    flow_lead_entity: 'Each column is a slice, as high as it has members. Ribbons are members that both slices have.', records_entity: 'Members', nobody_moved_entity: 'No member changed its segment.',
    try_lead_entity: 'Type what a member is like, see which segment it falls into; the star marks it in the plots above.',
    good_lead_entity: 'Silhouette tells how well the segments keep apart, from −1 to 1; inertia, how far members lie from their centroids.',
    inertia_row_entity: 'Inertia per member', rows_entity: 'Members', left_out_entity: 'Rows left out', silhouette_sample_entity: 'Of a sample of {n} of {of} members, which includes rare segments',
    k_nothing_entity: 'There are too few different members to try several numbers of clusters.', k_sample_entity: 'Tried on a sample of {n} of {of} members.', k_rows_entity: 'Tried on {n} members.', rows_hash_entity: 'Hash of the members',
  },
  id: {
    skip: 'Langsung ke segmen', connecting: 'Menghubungkan', live: 'Langsung', language: 'Bahasa', theme: 'Tema gelap',
    lost: 'Koneksi terputus, data terakhir {time}; mencoba lagi', unreachable: 'Server tidak menjawab; mencoba lagi',
    stream: 'Aliran data', segmentations: 'Segmentasi', docs: 'Dokumentasi API',
    records_n: '{n} rekaman',
    summary: 'dalam {segmentations} segmentasi. {models} model melayani: untuk sepertiga pertama aliran, dua pertiga pertama, dan seluruhnya.',
    summary_empty: 'Belum ada yang tersimpan. Halaman ini terisi sendiri begitu rekaman masuk.',
    summary_training: 'tersimpan. Model pertama sedang dibuat.',
    summary_refused: 'tersimpan, tetapi tidak ada model yang dapat dibuat darinya.',
    clock_apart: 'Jam perangkat ini dan jam server berselisih {minutes} menit; umur data dihitung dengan jam server.',
    stale: 'Penyimpanan sedang tidak dapat dibaca; angkanya lebih lama dari kelihatannya. Log server menyebut sebabnya.',
    halted: 'Satu partisi berhenti: {gap}',
    refused: 'Tidak ada model: {why}.',
    fault: '{name}, irisan {slice}: {why}; tercile doctor menunjukkan berkas mana dan langkah berikutnya.',
    refused_old: '{name}, irisan {slice}: pelatihan terakhir tidak menghasilkan model, model lama tetap melayani: {why}.',
    fact_rate: 'Rekaman per detik', fact_lag: 'Ketertinggalan', fact_unreadable: 'Tak terbaca', fact_files: 'Berkas', fact_trained: 'Pelatihan terakhir', fact_models: 'Model melayani',
    quiet: 'sedang sepi', partitions_n: 'di {n} partisi', no_ingest: 'tidak menyerap di proses ini',
    none_yet: 'semua terbaca', look: 'lihat', not_yet: 'belum', of_n: 'dari {n}',
    just_now: 'baru saja', in_future: 'di masa depan: ada jam yang salah',
    segments: 'Segmen',
    segments_lead: 'Setiap titik adalah satu rekaman, warna dasar menunjukkan segmen bagi rekaman baru. Ketiga irisan memakai sumbu yang sama, sehingga pergeserannya terlihat.',
    slice_1: 'Sepertiga pertama', slice_2: 'Dua pertiga pertama', slice_3: 'Seluruh aliran',
    segments_lead_one: 'Setiap batang menghitung rekaman sampel; garis putus-putus adalah batas antarsegmen. Ketiga irisan memakai sumbu yang sama.',
    imputed: '{feature} kosong di {n} dari {all} baris dan diganti rata-rata', hollow: 'berongga', was_missing: 'kosong, diganti rata-rata', of_them_missing: '{n} di antaranya kosong, diganti rata-rata',
    rows_version: '{n} baris · versi {version}', rows_n: '{n} baris', no_model: 'Belum ada model.',
    across: 'Mendatar', up: 'Tegak', log: 'skala log', log_of: 'Log: {feature}',
    zoom_in: 'Perbesar (Ctrl dan roda tetikus)', zoom_out: 'Perkecil', zoom_all: 'Tampilkan semua',
    scatter_of: 'Diagram pencar {n} rekaman.', histogram_of: 'Histogram {n} rekaman.', scatter_of_sample: 'Diagram pencar sampel {n} dari {of} rekaman.', histogram_of_sample: 'Histogram sampel {n} dari {of} rekaman.', rows_of_sample: 'rekaman dalam sampel',
    place: 'partisi {partition}, offset {offset}',
    typical_key: 'Tiga angka adalah kuartil: seperempat rekaman tidak melebihi yang pertama, setengah tidak melebihi yang kedua, tiga perempat tidak melebihi yang ketiga.',
    tiny: 'Segmen yang hampir tanpa rekaman: {names} ({n} dari {all}).', tiny_prefers: 'Tanpa rekaman ini, silhouette memilih {k} segmen.', tiny_try: 'Lihat segmen lainnya tanpa rekaman ini.',
    new_segment: 'baru', words_changed: 'Kata yang berubah pada pelatihan terakhir', description: 'deskripsi', no_word: 'tidak disebut',
    word_changed: '{slice}, {name}: {of} dulu {from}, kini {to}.',
    changed: 'Apa yang berubah',
    moved_2: 'Dari sepertiga pertama ke dua pertiga pertama, {n} dari {all} rekaman ({share}) berpindah segmen.',
    moved_3: 'Dari sana ke seluruh aliran, {n} dari {all} ({share}).',
    nothing_to_compare: 'Baru ada satu model, atau fiturnya berbeda dari sebelumnya: belum ada yang dapat dibandingkan.',
    flow: 'Siapa pindah ke mana', flow_lead: 'Setiap kolom adalah irisan, setinggi jumlah barisnya. Pita adalah rekaman yang sudah ada; sisanya baru.',
    moves: 'Pergeseran pusat', moves_lead: 'Dari sepertiga pertama (kecil) ke seluruh aliran (bernomor).',
    in_figures: 'Dalam angka', slice: 'Irisan', segment: 'Segmen', centroid: 'Pusat', step: 'Langkah', from: 'Dari', to: 'Ke', records: 'Rekaman', nobody_moved: 'Tidak ada rekaman yang berpindah segmen.',
    try: 'Coba', try_lead: 'Ketik satu rekaman dan lihat segmennya; bintang menandainya pada diagram di atas.',
    trained_on: 'Model dari', predict: 'Segmen mana?', try_first: 'Jawaban muncul di sini, dengan alasannya dan perintah curl yang menanyakan hal yang sama.',
    no_number: '{feature} harus berupa angka.', same_by_curl: 'Hal yang sama dengan curl', copy: 'Salin', copied: 'Tersalin',
    distance: 'Jarak ke pusatnya: {distance}.', distances: 'Jarak ke setiap pusat', shares: 'Bagian setiap fitur dalam jarak ke pusatnya',
    runner_up: 'Terdekat berikutnya {name}, dengan selisih {margin}.', each_slice: 'Menurut model tiap irisan',
    good: 'Seberapa baik', good_lead: 'Silhouette menunjukkan seberapa terpisah segmen, dari −1 sampai 1; inersia, seberapa jauh rekaman dari pusatnya.',
    silhouette: 'Silhouette', inertia: 'Inersia', inertia_row: 'Inersia per baris', rows: 'Baris', left_out: 'Tidak diikutkan', iterations: 'Iterasi',
    strong: 'Struktur kuat', reasonable: 'Struktur cukup', weak: 'Struktur lemah', no_structure: 'Tidak ada struktur berarti', one_cluster: 'Satu klaster: tidak ada yang dipisahkan', no_silhouette: 'Tidak diketahui: sampel model ini hanya berisi baris dari satu klaster. Pelatihan berikutnya menghitungnya.', silhouette_sample: 'Dari sampel {n} dari {of} baris, termasuk segmen langka',
    candidates_title: 'Menunggu keputusan', candidate_serves: 'Melayani', candidate_waits: 'Calon', candidate_since: 'versi {version} menunggu sejak {time}:', candidate_decide: 'Untuk memutuskan:',
    drift_title: 'Sejak pelatihan', drift_waiting: 'Dibandingkan saat terlihat.', drift_nothing: 'Belum ada rekaman baru sejak itu.',
    drift_few: 'Data terlalu sedikit untuk dibandingkan: {n} baris tiba sejak itu, dan 500 diperlukan di kedua sisi.',
    drift_ok: '{n} dari {of} baris yang tiba sejak {since} tersebar seperti baris pelatihan.',
    drift_drifting: '{n} dari {of} baris yang tiba sejak {since} berbeda dari baris pelatihan.', drift_began: 'Pergeseran mulai sekitar {time}.',
    drift_change: 'Perubahan', drift_missing: 'Hilang, dulu → kini', drift_share: 'Bagian, dulu → kini', drift_up: 'lebih tinggi', drift_down: 'lebih rendah', drift_spread: 'tersebar lain', drift_none: 'tidak ada',
    drift_unlike: '{now} dari baris ini lebih jauh dari sentroidnya daripada 999 dari 1.000 baris pelatihan; dari barisnya sendiri {before}.', feature: 'Fitur',
    k_title: 'Berapa segmen', k_waiting: 'Dihitung saat bagian ini terlihat.', k_working: 'Mencoba beberapa jumlah klaster pada sampel …',
    k_nothing: 'Baris yang berbeda terlalu sedikit untuk mencoba beberapa jumlah klaster.',
    k_agree_3: 'Siku, silhouette, dan stabilitas sepakat pada {k}.', k_agree_2: 'Dua dari tiga memilih {k}.', k_agree_1: 'Siku, silhouette, dan stabilitas tidak sepakat; {k} punya silhouette terbaik.',
    k_as_model: 'Model ini punya {k}.', k_unlike_model: 'Model ini punya {k}, sesuai berkas SQL-nya.', k_sample: 'Dicoba pada sampel {n} dari {of} baris.', k_rows: 'Dicoba pada {n} baris.',
    elbow: 'Siku', stability: 'Stabilitas', picks: 'memilih {k}', model_has: 'model memiliki {k}', mean: 'rata-rata {mean}',
    receipt: 'Tanda terima: {slice}, versi {version}', made_by: '{version}, metode {method}', version: 'Versi', trained_at: 'Dilatih', topic: 'Topik', stream_then: 'Rekaman dalam aliran saat itu', next_offsets: 'Offset berikutnya',
    last_record: 'Rekaman terakhir', starts_seed: 'Awal · benih', predecessor: 'Nomor diambil dari', scaled: 'Skala', version_of: 'versi {version}, {slice}', none: 'tidak ada',
    rows_hash: 'Hash baris', sql_hash: 'Hash SQL', check: 'Periksa',
    unreadable: 'Yang tak terbaca', unreadable_lead: 'Pesan yang bukan objek JSON tetap tersimpan di tempatnya, beserta alasannya.',
    all_readable: 'Semua pesan terbaca', all_readable_more: 'Yang tidak terbaca akan muncul di sini, dengan alasan dan tempatnya dalam topik.',
    last_of: '{n} terakhir dari {all}.', when: 'Kapan', where: 'Di mana', why: 'Mengapa', began: 'Awalnya', empty_message: '(kosong)',
    no_segmentations: 'Tidak ada segmentasi', no_segmentations_more: 'Berkas SQL dengan baris kepala “-- k: 3” membuatnya.',
    no_models: 'Belum ada model', no_models_empty: 'Model dilatih setelah rekaman tersimpan. Kirim: tercile produce FILE.', no_models_more: 'Model sedang dilatih, atau dilatih setelah POST /api/train.',
    no_model_possible: 'Tidak ada model yang dapat dibuat',
    not_loaded: 'Segmentasi ini tidak dapat dimuat', answered: 'Server menjawab {status}.',
    key_title: 'Server ini meminta kunci', key_why: 'Kunci disimpan sampai tab ini ditutup, dan hanya dikirim ke server ini.', key_refused: 'Kunci itu tidak diterima. Kunci harus punya cakupan “read”.', key: 'Kunci API', key_go: 'Lanjut',
    members: 'Anggota', members_lead: 'Setiap {what} berada di satu segmen pada tiap irisan yang memuatnya. Kunci ditampilkan bila diminta.', member_title: 'Satu anggota', look_up: 'Cari', look_up_first: 'Segmennya di setiap irisan muncul di sini.', empty_key: '(kunci kosong)', not_there: 'belum menjadi anggota', distance_short: 'Jarak',
    moved_title: 'Anggota yang berpindah', moved_lead: 'Yang berada di segmen lain pada model sebelumnya.', show_moved: 'Tampilkan kuncinya', moved_shown: '{n} ditampilkan. {of}.', more: 'Lagi',
    members_denied: 'Kunci halaman ini tidak punya cakupan “members”, sehingga tidak boleh melihat kunci anggota.',
    segments_lead_entity: 'Setiap titik adalah satu anggota, satu untuk setiap {what}; warna dasar menunjukkan segmen bagi anggota baru. Ketiga irisan memakai sumbu yang sama, sehingga pergeserannya terlihat.',
    segments_lead_one_entity: 'Setiap batang menghitung anggota sampel, satu untuk setiap {what}; garis putus-putus adalah batas antarsegmen. Ketiga irisan memakai sumbu yang sama.',
    imputed_entity: '{feature} tidak ada pada {n} dari {all} anggota dan memakai rata-rata', rows_version_entity: '{n} anggota · versi {version}', rows_n_entity: '{n} anggota',
    scatter_of_entity: 'Sebaran {n} anggota.', histogram_of_entity: 'Histogram {n} anggota.', scatter_of_sample_entity: 'Sebaran sampel {n} dari {of} anggota.', histogram_of_sample_entity: 'Histogram sampel {n} dari {of} anggota.', rows_of_sample_entity: 'anggota sampel',
    tiny_entity: 'Segmen yang hampir tanpa anggota: {names} ({n} dari {all}).', tiny_prefers_entity: 'Tanpa anggota ini, silhouette memilih {k} segmen.',
    typical_key_entity: 'Tiga angka adalah kuartil: seperempat anggota berada pada atau di bawah yang pertama, separuh pada atau di bawah yang kedua, tiga perempat pada atau di bawah yang ketiga.',
    moved_2_entity: 'Dari sepertiga pertama ke dua pertiga pertama, {n} dari {all} anggota yang ada di keduanya ({share}) berpindah segmen.', moved_3_entity: 'Dari sana ke seluruh aliran, {n} dari {all} ({share}).',
    flow_lead_entity: 'Setiap kolom adalah satu irisan, setinggi jumlah anggotanya. Pita adalah anggota yang ada di kedua irisan.', records_entity: 'Anggota', nobody_moved_entity: 'Tidak ada anggota yang berpindah segmen.',
    try_lead_entity: 'Ketik ciri seorang anggota, lihat segmennya; bintang menandainya pada plot di atas.',
    good_lead_entity: 'Silhouette menunjukkan seberapa terpisah segmen, dari −1 sampai 1; inersia, seberapa jauh anggota dari pusatnya.',
    inertia_row_entity: 'Inersia per anggota', rows_entity: 'Anggota', left_out_entity: 'Baris tidak diikutkan', silhouette_sample_entity: 'Dari sampel {n} dari {of} anggota, termasuk segmen langka',
    k_nothing_entity: 'Anggota yang berbeda terlalu sedikit untuk mencoba beberapa jumlah klaster.', k_sample_entity: 'Dicoba pada sampel {n} dari {of} anggota.', k_rows_entity: 'Dicoba pada {n} anggota.', rows_hash_entity: 'Hash anggota',
  },
};

function kept() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

let chosen = WORDS[kept()] ? kept() : navigator.language?.toLowerCase().startsWith('id') ? 'id' : 'en';

export const language = () => chosen;

export function setLanguage(language) {
  chosen = language;
  try {
    localStorage.setItem(KEPT, language);
  } catch {
    // Kept until the page is closed.
  }
}

/** The key columns of the segmentation shown, if it is by entity: texts then speak of members instead of records. */
let entity = [];

export function about(columns) {
  const other = columns.join() !== entity.join();
  entity = columns;
  if (other) apply();
}

/** Text with its {placeholders} filled; `one` selects the singular if the language has one. */
export function t(key, values = {}) {
  const words = WORDS[chosen];
  const text = (entity.length > 0 && words[`${key}_entity`]) || (values.one && words[`${key}_one`]) || words[key] || WORDS.en[key] || key;
  return text.replace(/\{(\w+)\}/g, (_, name) => (name === 'what' ? entity.join(' + ') : values[name]));
}

/** Sets the texts and labels of all elements that name them. */
export function apply() {
  document.documentElement.lang = chosen;
  for (const element of document.querySelectorAll('[data-t]')) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll('[data-t-label]')) element.setAttribute('aria-label', t(element.dataset.tLabel));
}
